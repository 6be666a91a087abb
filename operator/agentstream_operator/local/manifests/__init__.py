"""Reads manifests, and keeps the resources that they declare."""
