"""Running: which cell when, where, and by which worker."""
