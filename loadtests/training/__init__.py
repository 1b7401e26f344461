"""Training steps on a server, network included, against the same steps without one."""
