"""Slots of nodes, shared by several programs."""
