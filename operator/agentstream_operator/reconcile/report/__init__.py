"""Tells people and probes what the operator knows."""
