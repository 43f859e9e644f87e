"""Benchmarks. Run a module with ``python -m benchmarks.<name>``; see README.md here."""
