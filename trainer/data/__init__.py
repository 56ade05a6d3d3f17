"""Datasets as arrays: registry (names), sources (readers), cache (memory maps), batches (of one step)."""
