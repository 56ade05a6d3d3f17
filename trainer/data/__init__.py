"""Datasets as arrays: registry (names), raw and decode (readers), cache (memory maps), batches (what a step sees)."""
