"""Runs in the background: server and access checks, measuring, janitor, wake-up, pod cleanup."""
