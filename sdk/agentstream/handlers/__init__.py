"""Declares handlers, and runs them with the messages of the streams that they consume."""
