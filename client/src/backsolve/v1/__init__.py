"""Generated from `proto/backsolve/v1`; run `scripts/generate_proto.py` instead of editing."""
