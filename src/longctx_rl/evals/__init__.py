"""Evaluation: what a model answers to items it has not seen, item by item, and what that amounts to."""
