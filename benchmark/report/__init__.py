"""The report: HTML pages made of records."""
