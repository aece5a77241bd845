"""Tokenizers (BPE, characters, pretrained ones), their reserved tokens and the chat template. Imports no torch."""
