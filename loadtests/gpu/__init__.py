"""What solves cost on a CUDA device, in seconds and beside the limit that its memory sets."""
