"""The cluster state, and the background tasks that keep it up to date."""
