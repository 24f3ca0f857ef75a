"""Cells: single experiments, the suites they come from, and what they are expected to cost."""
