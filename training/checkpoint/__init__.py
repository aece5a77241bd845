"""Sharded, verified checkpoints, and full weights read from them; knows no model."""
