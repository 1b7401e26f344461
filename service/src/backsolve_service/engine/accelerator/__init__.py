"""Methods on a torch device: the operator, the iterations and the proof stay where the memory is.

Everything here takes the device as a parameter and runs on torch's CPU as well, which is where
most of its tests run.
"""
