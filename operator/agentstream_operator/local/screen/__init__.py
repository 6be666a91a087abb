"""Shows what `agentstream dev` does."""
