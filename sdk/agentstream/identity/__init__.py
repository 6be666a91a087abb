"""Reads the agent's settings, credentials and signing keys."""
