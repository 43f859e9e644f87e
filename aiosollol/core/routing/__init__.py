"""Routing of live requests: node selection, node health, limits and retries."""
