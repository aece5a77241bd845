"""From sources to documents, token shards and examples. Imports no torch."""
