"""gRPC over the data plane: a thin translator, no numerics."""
