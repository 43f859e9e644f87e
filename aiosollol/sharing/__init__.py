"""Nodes shared with other programs by leases."""
