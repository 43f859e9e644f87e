"""Tracing: trace headers forwarded to the nodes, or spans recorded with OpenTelemetry."""
