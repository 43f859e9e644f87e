"""Leases of node slots, shared by several programs."""
