"""Keys, commands, envelopes, entries and routes that agents, operator and server share."""
