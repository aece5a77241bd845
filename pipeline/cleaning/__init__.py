"""Document cleaning. Each rule operates on an Arrow column of texts."""
