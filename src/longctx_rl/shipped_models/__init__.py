"""The shipped mini student and teacher, and how their tokenizer is built."""
