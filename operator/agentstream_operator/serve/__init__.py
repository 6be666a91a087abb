"""Serves HTTP: the server itself, and the operator's probes and metrics."""
