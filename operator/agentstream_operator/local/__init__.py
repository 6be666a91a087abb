"""`agentstream dev`: the same reconcilers over files, subprocesses and an embedded Valkey."""
