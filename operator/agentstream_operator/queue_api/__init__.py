"""Answers over HTTP what is in the queues, and takes replays."""
