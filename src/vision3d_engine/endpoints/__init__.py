"""Intermediate tensors (endpoints) that a model hands to losses and hooks without passing them through every call."""
