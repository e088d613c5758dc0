"""Training runs: construction from a configuration, training, resuming, export and sweeps."""
