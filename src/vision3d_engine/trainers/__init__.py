"""What users subclass to train."""
