"""Answers `external.metrics.k8s.io`: a process of its own."""
