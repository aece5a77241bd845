"""Sharded, verified checkpoints, and the full weights out of them; knows no model."""
