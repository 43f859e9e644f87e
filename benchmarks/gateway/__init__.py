"""What the gateway costs, against no proxy, plain proxies and other gateways.

`python -m benchmarks.gateway --help` says how to run it, benchmarks/README.md what came of it.
"""
