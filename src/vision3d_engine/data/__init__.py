"""Batches: loaders that know their processes, endless streams, and single cases out of a batch."""
