"""Runs and supervises processes: agents, and the reaper that ends them after a crash."""
