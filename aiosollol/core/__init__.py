"""Decisions. Nothing here waits, reads a clock, rolls dice or opens a socket."""
