"""Cells: what there is to run, and from which suite."""
