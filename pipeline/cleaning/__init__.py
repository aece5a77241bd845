"""Document cleaning. Each rule is a function of an Arrow column of texts."""
