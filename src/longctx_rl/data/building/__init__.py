"""LongBlocks from one's own documents: read, ask, check, write."""
