"""What each request passes first: keys, limits, origins; and the errors it may get."""
