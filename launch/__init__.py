"""Starts and supervises the processes of a recipe: local, torchrun, DeepSpeed, SLURM. Imports no torch."""
