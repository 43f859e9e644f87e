"""Engines that compute batches outside of this process: Dask and Ray.

Each has a module `engine` with ``make_engine(settings, registry)``, which `pool.bootstrap` loads by
name. The modules beside them are shared: partitions, the pool in a worker, leases for workers.
A pool without an enabled engine imports nothing from here.
"""
