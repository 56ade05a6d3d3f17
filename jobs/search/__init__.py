"""Adaptive search: the study that slots ask for trials, and the source of a worker's tasks that it becomes."""

JOURNAL, SEARCH = "study.log", "search.json"  # in the sweep's directory
