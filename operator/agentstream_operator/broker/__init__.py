"""Everything that is said to Redis or Valkey."""
