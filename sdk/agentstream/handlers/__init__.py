"""Declares handlers and runs them over what is consumed."""
