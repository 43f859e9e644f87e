"""What the client costs: CPU time per request, per vector and per token, memory and start-up.

`python -m benchmarks.client --help` says how to run it, benchmarks/README.md what came of it.
"""
