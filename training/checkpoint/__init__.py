"""Sharded checkpoints with checksums, and full weights read from them. Independent of models."""
