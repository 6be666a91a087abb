"""Reads and watches manifests of `agentstream dev`."""
