"""Tokenizers (BPE, characters, ready ones), their reserved tokens and the chat template. Imports no torch."""
