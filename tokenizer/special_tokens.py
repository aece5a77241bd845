"""The reserved tokens, and the label for positions without a loss.

If a document contains a reserved token's name, the name is encoded as ordinary text, because reserved tokens are
control symbols in SentencePiece. So encoding never produces a reserved id. The only exception is the unknown token,
which stands for characters without an id.
"""

from configs.schema.tokenizer import RESERVED_TOKENS

#: Names of the reserved tokens. A token's id is its index. Every vocabulary that Millrace trains begins with them.
RESERVED = RESERVED_TOKENS
UNKNOWN_ID, BEGIN_ID, END_OF_TEXT_ID, PAD_ID, SYSTEM_ID, USER_ID, ASSISTANT_ID, END_OF_TURN_ID = range(len(RESERVED))

#: Label for positions without a loss. PyTorch's cross-entropy ignores it.
IGNORED = -100


def spare(count: int) -> tuple[str, ...]:
    """Return names for the spare tokens, which have no meaning yet. Their ids follow ``RESERVED``."""
    return tuple(f"<|spare_{number}|>" for number in range(count))
