"""One HTML file that compares runs: it needs no account and no network."""
