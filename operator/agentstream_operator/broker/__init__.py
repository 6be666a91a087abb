"""Reads and changes the state that streams and agents have on the Redis or Valkey server."""
