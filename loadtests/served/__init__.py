"""What callers of a server see under load: latencies, goodput, bytes on the wire, and what it does to the server."""
