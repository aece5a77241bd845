"""Tokenizers (BPE, character-level and pretrained), reserved tokens, and the chat template. Does not import torch."""
