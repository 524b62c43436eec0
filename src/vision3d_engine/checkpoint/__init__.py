"""Checkpoint files: written whole or not at all, loaded as data only, judged and removed last."""
