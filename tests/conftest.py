"""Its presence puts ``tests/`` on the import path, so that test folders share the builders that lie here."""
