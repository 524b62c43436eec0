"""Optimizers and learning rate schedules from a config, built from torch's own."""
