"""Inference: sampling, generation with a KV cache, speculative decoding, beam search, and traces."""
