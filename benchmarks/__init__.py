"""Measurements. Each module is run with ``python -m benchmarks.<name>``; see README.md here."""
