"""What reconciling needs from where resources live: a small port, and its adapters."""
