"""The ports, connections and processes of a gateway."""
