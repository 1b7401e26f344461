"""What the engine itself costs, beside what SciPy's users do today; no network in it."""
