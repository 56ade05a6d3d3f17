"""Feature extractors, and the statistics and distances of feature vectors."""
