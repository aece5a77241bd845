"""Comparisons of a model across optimizers, activations, devices and attention implementations, and when compiled."""
