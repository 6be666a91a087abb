"""Durable messages between software agents over Redis and Valkey streams."""
