"""What one server can do at its limits, each figure beside its target: rates, idling, memory, health under load."""
