"""Batches on workers of Dask."""
