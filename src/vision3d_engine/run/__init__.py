"""What a run needs around its passes: settings, folder, saving, resuming, stopping."""
