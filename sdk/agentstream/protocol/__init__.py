"""What agents, operator and server agree on: keys, envelopes, entries, routes, the function library."""
