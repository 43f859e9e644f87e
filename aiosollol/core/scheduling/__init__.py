"""Batch scheduling: cost model, plans, and assignment of chunks to nodes."""
