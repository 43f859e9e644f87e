"""What an engine costs and gains: in-process, Dask and Ray, against both modes of sollol 0.9.66.

`python -m benchmarks.engines --help` says how to run it, benchmarks/README.md what came of it.
"""
