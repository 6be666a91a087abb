"""Remembers what is declared and what was found."""
