"""Token shards and examples to batches; knows no model and no family."""
