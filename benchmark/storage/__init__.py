"""Files: the cache, checkpoints, and how each is written whole or not at all."""
