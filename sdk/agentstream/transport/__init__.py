"""Speaks RESP to the server: endpoints, connections, subscriptions, error replies, retries."""
