"""Starts and supervises a recipe's processes, locally or with torchrun, DeepSpeed or SLURM. Does not import torch."""
