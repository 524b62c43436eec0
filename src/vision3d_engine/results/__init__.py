"""What a test leaves in its folder: one file per sample, one row per case, and a summary."""
