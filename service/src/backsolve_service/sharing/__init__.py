"""Memory that callers on the same machine share with the service: registered once, then named in requests."""
