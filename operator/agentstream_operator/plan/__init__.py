"""Decisions: (resource, what was observed, now) -> actions. No I/O, no clock, no randomness."""
