"""Batches from token shards and examples; knows no model and no family."""
