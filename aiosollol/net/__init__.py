"""Talking to one node: HTTP/1.1 connections, deadlines, name lookup, child processes."""
