"""Batches on Dask workers."""
