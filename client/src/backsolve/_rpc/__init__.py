"""gRPC as both ends speak it: messages, frames, and errors in trailers."""
