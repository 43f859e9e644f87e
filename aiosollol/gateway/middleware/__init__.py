"""The middleware of the gateway: keys, limits, origins and error responses."""
