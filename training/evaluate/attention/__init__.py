"""Where a model's heads look: attention weights of a text, numbers of each head, heat maps."""
