"""Training and evaluation. Knows nothing of network families: a sub-network is a value that the model understands."""
