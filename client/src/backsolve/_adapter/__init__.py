"""What the adapters of all frameworks share: the requests of a differentiated solve, and its formulas."""
