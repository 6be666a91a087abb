"""Writes the files in which agents find how to connect."""
