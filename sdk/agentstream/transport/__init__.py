"""Speaks RESP to the server: endpoints, clients, subscriptions, error replies, retries."""
