"""Ports, connections and processes of a gateway."""
