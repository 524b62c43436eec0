"""What happens between a batch and an update: the one loop, accumulation, counters, hooks, checks of results."""
