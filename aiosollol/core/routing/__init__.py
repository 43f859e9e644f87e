"""Live requests: which node gets one, and what its outcome changes."""
