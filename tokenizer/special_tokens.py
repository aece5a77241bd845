"""The reserved tokens, and the label of positions without a loss.

A document that contains the name of a reserved token is encoded as ordinary text, because SentencePiece treats them as
control symbols. So no text is encoded to their ids, except that of the unknown token, which stands for characters
without an id.
"""

from configs.schema.tokenizer import RESERVED_TOKENS

#: Names of the reserved tokens. The id of a token is its index. Every tokenizer of Millrace begins with them.
RESERVED = RESERVED_TOKENS
UNKNOWN, BEGIN, END_OF_TEXT, PAD, SYSTEM, USER, ASSISTANT, END_OF_TURN = RESERVED
UNKNOWN_ID, BEGIN_ID, END_OF_TEXT_ID, PAD_ID, SYSTEM_ID, USER_ID, ASSISTANT_ID, END_OF_TURN_ID = range(len(RESERVED))

#: Label of a position without a loss. PyTorch's cross-entropy ignores it.
IGNORED = -100


def spare(count: int) -> tuple[str, ...]:
    """Names of the reserved tokens without a meaning yet. They follow ``RESERVED``."""
    return tuple(f"<|spare_{number}|>" for number in range(count))
