"""Offloading batches to an engine: choice of the engine, partitions, and reports."""
