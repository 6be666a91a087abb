"""Shows in a browser what the HTTP API answers: pages made on the server, readable without JavaScript."""
