"""Block sizes for attention and the loss. Separate from the layers so that memory estimates do not import torch."""

#: Number of queries that attention on CPU processes at a time.
QUERY_BLOCK = 128
#: Longest sequence for which the CPU path saves the attention weights for the backward pass.
LONGEST_BLOCKED = 2048

#: Number of logits that the loss materializes at a time, by device type.
_LOGITS = {"cpu": 2**22, "cuda": 2**27}
#: Minimum number of logit rows per chunk. With fewer, reading the head's matrix and updating its gradient for each
#: chunk would dominate.
FEWEST_ROWS = 512


def rows_of_logits(device: str, rows: int, vocab_size: int) -> int:
    """Return the number of rows, at least 1, of the logits [rows, vocab_size] that the loss computes at a time."""
    return min(max(rows, 1), max(FEWEST_ROWS, _LOGITS.get(device, _LOGITS["cuda"]) // vocab_size))
