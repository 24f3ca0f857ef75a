"""The report: HTML pages made from records."""
