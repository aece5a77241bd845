"""Comparisons: optimizers, activation functions, devices, attention implementations, and eager vs. compiled mode."""
