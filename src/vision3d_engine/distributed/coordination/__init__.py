"""How processes act together: agreement, failure detection and sums, none of which costs a step an exchange."""
