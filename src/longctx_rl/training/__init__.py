"""One training step in its parts: collecting groups, preparing rows, updating, and counting what it cost."""
