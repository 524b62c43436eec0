"""What users subclass to test."""
