"""Cleaning of documents. Each rule is a function of an Arrow column of texts."""
