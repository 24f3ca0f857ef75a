"""Training: one loop, and what feeds, records and keeps it."""
