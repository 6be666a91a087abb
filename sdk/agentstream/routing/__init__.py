"""Looks up routes, and chooses among them."""
