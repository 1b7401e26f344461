"""What a solve through backsolve costs next to a local factor kept by hand, in one process and one run."""
