"""One module per family of the HTTP API."""
