"""Remembers resources, observations and written access."""
