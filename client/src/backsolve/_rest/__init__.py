"""REST as both ends speak it: bulk bodies, and records as JSON."""
