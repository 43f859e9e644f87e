"""Batches of texts: planning, execution, and vectors in input order."""
