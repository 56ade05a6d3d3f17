"""The report of a sweep: the page and its tables."""
