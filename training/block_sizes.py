"""Sizes of the pieces that attention and the loss work in, shared with the memory estimate, which imports no torch."""

#: Queries that attention on CPU takes at a time.
QUERY_BLOCK = 128
#: Longest sequence whose attention weights the CPU path keeps for the backward pass.
LONGEST_BLOCKED = 2048

#: Logits that the loss holds at a time, by kind of device.
_LOGITS = {"cpu": 2**22, "cuda": 2**27}
#: Fewest rows of logits at a time: with fewer, reading the head's matrix and updating its gradient for each piece would
#: dominate.
FEWEST_ROWS = 512


def rows_of_logits(device: str, rows: int, vocab_size: int) -> int:
    """Rows of logits [rows, vocab_size] that the loss computes at a time on a kind of device; at least 1."""
    return min(max(rows, 1), max(FEWEST_ROWS, _LOGITS.get(device, _LOGITS["cuda"]) // vocab_size))
