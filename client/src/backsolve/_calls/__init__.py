"""The calls of a client as steps: prepare, send, finish; who sends, and whether it blocks, is not said here."""
