"""Comparisons of optimizers, activations, devices, attention implementations, and of eager and compiled mode."""
