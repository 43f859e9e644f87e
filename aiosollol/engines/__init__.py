"""Places outside of this process where batches are computed: Dask and Ray.

Each is a module with ``make_engine(settings, registry)``, which `engine_loading` finds by its name.
Nothing here is imported by a pool that has no engine turned on.
"""
