"""The ways in: one module a protocol. Each is imported only by a sidecar that listens for it."""
