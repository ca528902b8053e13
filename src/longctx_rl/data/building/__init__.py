"""Building a data set in the format of LongBlocks from local documents: read, write questions, check, save."""
