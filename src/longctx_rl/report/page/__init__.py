"""A single HTML file that compares runs, and needs neither an account nor a network."""
