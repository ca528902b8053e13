"""Evaluation on held-out items and benchmarks: the items, the model's graded answers, and their summaries."""
