"""Processes and devices: the one door to ``torch.distributed`` and to environment variables."""
