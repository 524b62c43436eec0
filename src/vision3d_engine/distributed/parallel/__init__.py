"""Ways to share a model among processes, one class each."""
