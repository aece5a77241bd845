"""Cut a text into documents: at the end of a paragraph or sentence, or into overlapping windows.

The text comes in blocks. Their lengths do not change the result.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

#: An end mark, closing quotes or brackets, and space; or an end mark of Chinese and Japanese, which needs no space.
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][”’」』）]*\s*|\n\n+")
#: How a sentence may begin, other than with an upper-case letter.
_OPENING = "\"'“‘«(["


class Piece(NamedTuple):
    """A part of a text, and the number of characters before it."""

    offset: int
    text: str


def cut(text: str, size: int) -> Iterator[str]:
    """Cut a text at the first end of a paragraph at or after ``size`` characters; 0: do not cut.

    If there is none within another ``size`` characters, cut at the end of a line, else at a space, else after ``size``
    characters. A rest of less than half of ``size`` is not cut off. Joining the pieces gives the text.
    """
    return (piece.text for piece in pieces([text], "paragraph", size))


def pieces(blocks: Iterable[str], chunk: str, size: int, overlap: int = 0) -> Iterator[Piece]:
    """Documents of a text. At most a block and three times ``size`` of the text is held in memory.

    Args:
        blocks: the text, in order.
        chunk: paragraph: see ``cut``. sentence: the same at the end of a sentence, which is an end mark followed by
            space and an upper-case letter or opening quote, or a blank line. window: every ``size`` characters.
        size: approximate characters of a document; 0: the text is one document.
        overlap: characters that a window shares with the one before it.
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
            # More newlines after the paragraph may follow in the next block.
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


#: Rule -> where a piece that begins at a position stops, and the length up to which the rest of a text is not cut.
_RULES: dict[str, tuple[Callable[[str, int, int], int], Callable[[int], int]]] = {
    "paragraph": (_paragraph_stop, lambda size: size + size // 2),
    "sentence": (_sentence_stop, lambda size: size + size // 2),
    "window": (_window_stop, lambda size: size),
}
