"""Serves the HTTP API of a cluster, as a process of its own."""
