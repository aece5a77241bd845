"""Cutting a text into documents: at paragraph ends, at sentence ends, or into windows that overlap.

The text comes in blocks of any length, whose ends change nothing.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

#: An end mark, what closes after it, and space; or an end mark of Chinese and Japanese, which no space follows.
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][”’」』）]*\s*|\n\n+")
#: What a sentence may begin with beside an upper-case letter.
_OPENING = "\"'“‘«(["


class Piece(NamedTuple):
    """A part of a text and the number of characters before it."""

    offset: int
    text: str


def cut(text: str, size: int) -> Iterator[str]:
    """Cut a text at the first paragraph end at or after ``size`` characters; 0: do not cut.

    Where none follows within as many again, it is cut at a line end, failing that at a space, failing that after
    ``size`` characters; an end shorter than half of that stays with what is before it. The pieces joined are the text.
    """
    return (piece.text for piece in pieces([text], "paragraph", size))


def pieces(blocks: Iterable[str], chunk: str, size: int, overlap: int = 0) -> Iterator[Piece]:
    """Documents of a text; of it no more is held than a block and three times ``size``.

    Args:
        blocks: the text, in order.
        chunk: paragraph (see ``cut``); sentence: the same at sentence ends, which are an end mark, space and an
            upper-case letter or opening quote, or a blank line; window: every ``size`` characters.
        size: characters of a document, about; 0: the text is one.
        overlap: characters that a window repeats of the one before it.
    """
    if not size:
        if text := "".join(blocks):
            yield Piece(0, text)
        return
    stop_of, last = _RULES[chunk]
    ahead, more = "", iter(blocks)
    before = start = 0
    ended = False
    need = 3 * size
    while True:
        while not ended and len(ahead) - start < need:
            block = next(more, None)
            if block is None:
                ended = True
            else:
                before += start
                ahead, start = ahead[start:] + block, 0
        if ended and len(ahead) - start <= last(size):
            break
        stop = stop_of(ahead, start, size)
        if stop == len(ahead) and not ended:
            # The newlines after a paragraph may go on in the next block.
            need = len(ahead) - start + 1
            continue
        yield Piece(before + start, ahead[start:stop])
        start, need = stop - overlap, 3 * size
    if start < len(ahead):
        yield Piece(before + start, ahead[start:])


def _paragraph_stop(text: str, start: int, size: int) -> int:
    return _stop_at_mark(text, start, size, ("\n\n", "\n", " "))


def _sentence_stop(text: str, start: int, size: int) -> int:
    limit = start + 2 * size
    for match in _SENTENCE_END.finditer(text, start + size - 1, limit):
        after = text[match.end() : match.end() + 1]
        if match[0][0] not in ".!?…" or after.isupper() or (after and after in _OPENING):
            return match.end()
    return _stop_at_mark(text, start, size, ("\n", " "))


def _stop_at_mark(text: str, start: int, size: int, marks: tuple[str, ...]) -> int:
    ends = (text.find(mark, start + size - 1, start + 2 * size) for mark in marks)
    stop = next((end + 1 for end in ends if end >= 0), start + size)
    while stop < len(text) and text[stop] == "\n":
        stop += 1
    return stop


def _window_stop(text: str, start: int, size: int) -> int:
    return start + size


#: Rule -> where a piece stops that begins at a place; the longest end of a text that is not cut again.
_RULES: dict[str, tuple[Callable[[str, int, int], int], Callable[[int], int]]] = {
    "paragraph": (_paragraph_stop, lambda size: size + size // 2),
    "sentence": (_sentence_stop, lambda size: size + size // 2),
    "window": (_window_stop, lambda size: size),
}
