"""Looks routes up and chooses among them."""
