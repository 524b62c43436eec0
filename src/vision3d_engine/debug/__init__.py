"""Tools that look at a run: finite checks, run times."""
