"""The training loop and the parts of a step: collecting groups, preparing rows, updating, and counting costs."""
