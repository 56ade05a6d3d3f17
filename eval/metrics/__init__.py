"""Metrics: each file of this folder defines one, and nothing else."""
