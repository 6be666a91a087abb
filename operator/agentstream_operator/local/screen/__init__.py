"""Shows events, state and the summary of `agentstream dev`."""
