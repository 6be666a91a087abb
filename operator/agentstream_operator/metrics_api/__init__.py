"""Serves `external.metrics.k8s.io`, as a process of its own."""
