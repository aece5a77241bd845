"""Sources to documents to token shards and examples, one module a stage. Imports no torch."""
