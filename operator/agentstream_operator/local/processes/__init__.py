"""Runs agents as processes."""
