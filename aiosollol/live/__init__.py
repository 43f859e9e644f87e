"""One live request: placed, sent, hedged, retried, answered."""
