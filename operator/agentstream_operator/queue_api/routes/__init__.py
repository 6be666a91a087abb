"""The calls of the HTTP API, one file for a noun."""
