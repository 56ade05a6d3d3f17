"""Adaptive search: the study that slots ask for trials, and the source of a worker's tasks that it becomes."""
