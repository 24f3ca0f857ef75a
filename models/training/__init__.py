"""Training: one loop, its batches, its graph capture and its checkpoints."""
