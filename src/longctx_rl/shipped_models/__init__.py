"""The shipped mini student and teacher: weights, tokenizers and model cards."""
