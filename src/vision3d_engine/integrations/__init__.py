"""Engines of others that run a training; each is an extra, and loads on use."""
