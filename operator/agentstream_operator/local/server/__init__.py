"""Runs the embedded Valkey."""
