"""Sends messages, requests, replies, broadcasts and notifications."""
