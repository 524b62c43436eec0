"""Messages for people: the logger, and the text of its lines."""
