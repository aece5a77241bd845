"""A recipe's processes, started and watched: local, torchrun. Computes nothing and imports no torch."""
