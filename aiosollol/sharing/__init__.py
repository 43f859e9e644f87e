"""Sharing nodes with other programs, by leases."""
