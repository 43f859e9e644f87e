"""What callers notice when nodes fail, die or are cut off: ``python -m benchmarks.chaos``."""
