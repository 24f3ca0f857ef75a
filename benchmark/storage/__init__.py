"""Files: the cache, checkpoints, and writing that is complete or has no effect."""
