"""Batches: what a request costs, how a batch is planned, and which node gets which chunk."""
