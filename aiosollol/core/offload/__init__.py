"""Batches given to an engine: which engine, in what partitions."""
