"""What it costs to bring an array to a server on this machine and an answer back, beside the limits of the machine."""
