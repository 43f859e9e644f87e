"""Batches on Ray workers, and nodes shared between programs."""
