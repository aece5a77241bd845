"""Text from a trained model: sampling, generation with a cache, drafting, beam search, and traces."""
