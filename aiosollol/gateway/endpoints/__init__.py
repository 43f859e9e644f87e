"""The HTTP endpoints, by API."""
