"""Codecs: bytes to values and back, for each protocol. Pure: no sockets, no clock, no waiting."""
