"""Engines that compute batches outside of this process: Dask and Ray.

Each is a module with ``make_engine(settings, registry)``, which `engine_loading` finds by its name.
A pool without an enabled engine imports nothing from here.
"""
