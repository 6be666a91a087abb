"""Turns payloads into what programs like to have, across schema versions and contracts."""
