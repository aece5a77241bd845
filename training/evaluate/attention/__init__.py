"""Attention maps for a text: every head's weights, statistics, and heat maps."""
