"""Attention maps of a text: the weights of every head, statistics, and heat maps."""
