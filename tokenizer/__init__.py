"""SentencePiece BPE over the cleaned documents, its reserved tokens and the chat template. Imports no torch."""
