"""Shows and changes what is in the queues, from a terminal."""
