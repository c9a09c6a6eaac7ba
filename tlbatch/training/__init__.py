"""Training: phases, epochs, fitted heads, snapshots and the search of strategy = auto."""
