"""The way to one node: HTTP/1.1 connections, deadlines, names, child processes."""
