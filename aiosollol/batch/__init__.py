"""Many texts: planned, executed, gathered in input order."""
