"""Clouds of a run in the browser, to be turned; only this room knows viser."""
