"""The data stages: from sources to documents, token shards and examples. Never imports torch."""
