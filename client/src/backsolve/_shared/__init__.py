"""Shared memory as both ends speak it: pieces of regions in HTTP headers, and what the control socket carries."""
