"""A trial: one cell from its data to its record."""
