"""A demo on point clouds of everyday shapes; written like any user's code, on the public API only."""
