"""Batches on workers of Ray, and nodes shared between programs."""
