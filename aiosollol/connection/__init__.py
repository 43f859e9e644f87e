"""Connections to one server over HTTP/1.1: made, used, kept, closed."""
