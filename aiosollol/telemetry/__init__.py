"""Traces: passed on to the nodes, or recorded as OpenTelemetry spans."""
