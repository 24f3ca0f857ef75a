"""Records: what came out of each cell, as JSON."""
