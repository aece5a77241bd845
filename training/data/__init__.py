"""Batches from token shards and examples. Independent of models and model families."""
