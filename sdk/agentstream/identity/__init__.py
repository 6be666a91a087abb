"""Reads who this agent is: settings, credentials and signing keys."""
