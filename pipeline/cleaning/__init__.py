"""Cleaning of documents, a column at a time: each rule is a function of an Arrow column of texts."""
