"""The backsolve service: an engine, a cache and a scheduler behind gRPC, REST and in-process calls."""

__version__ = "0.1.0"
