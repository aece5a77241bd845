"""A recipe's processes, started and watched: local, torchrun, SLURM. Computes nothing and imports no torch."""
