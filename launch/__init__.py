"""Starts and supervises a recipe's processes: locally, with torchrun, DeepSpeed or SLURM. Does not import torch."""
