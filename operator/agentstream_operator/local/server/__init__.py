"""Runs the embedded Valkey in its data directory."""
