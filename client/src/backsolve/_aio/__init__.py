"""The calls of a client on an event loop: the same steps, awaited. Loaded with `backsolve.AsyncClient` alone."""
