"""The reserved control tokens, in id order.

A document that spells one of them out is encoded as ordinary text (to SentencePiece they are control symbols), so no
text can produce their ids; only code that asks for them by id can. But the unknown one stands for what has no id.
"""

from configs.schema.recipe import RESERVED_TOKENS

UNKNOWN = "<unk>"


BEGIN = "<|begin|>"


END_OF_TEXT = "<|endoftext|>"


PAD = "<|pad|>"


SYSTEM = "<|system|>"


USER = "<|user|>"


ASSISTANT = "<|assistant|>"


END_OF_TURN = "<|end|>"


#: Piece names; a token's id is its place. Every tokenizer of Millrace begins with these.
RESERVED = (UNKNOWN, BEGIN, END_OF_TEXT, PAD, SYSTEM, USER, ASSISTANT, END_OF_TURN)


assert len(RESERVED) == RESERVED_TOKENS


UNKNOWN_ID, BEGIN_ID, END_OF_TEXT_ID, PAD_ID, SYSTEM_ID, USER_ID, ASSISTANT_ID, END_OF_TURN_ID = range(RESERVED_TOKENS)


def spare(count: int) -> tuple[str, ...]:
    """Names of the reserved tokens without a meaning yet; they follow ``RESERVED``."""
    return tuple(f"<|spare_{number}|>" for number in range(count))


#: Label of a position that is not predicted.
IGNORED = -100
