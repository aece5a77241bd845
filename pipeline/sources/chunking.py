"""Cut a text into documents, either at the ends of paragraphs or sentences or into overlapping windows.

The text arrives in blocks, whose lengths do not affect the result.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

#: An end mark, closing quotes or brackets, and whitespace; or a Chinese or Japanese end mark, which needs no space.
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][”’」』）]*\s*|\n\n+")
#: Characters, other than uppercase letters, that can begin a sentence.
_OPENING = "\"'“‘«(["


class Piece(NamedTuple):
    """A piece of a text, and the number of characters before it."""

    offset: int
    text: str


def cut(text: str, size: int) -> Iterator[str]:
    """Cut a text at the first paragraph end after every ``size`` characters. If ``size`` is 0, don't cut it.

    If no paragraph ends within the next ``size`` characters, cut at the end of a line. Failing that, cut at a space, or
    otherwise after exactly ``size`` characters. If the rest of the text would be shorter than half of ``size``, it
    stays with the last piece. Joining the pieces restores the text.
    """
    return (piece.text for piece in pieces([text], "paragraph", size))


def pieces(blocks: Iterable[str], chunk: str, size: int, overlap: int = 0) -> Iterator[Piece]:
    """Cut a text into documents. At most one block plus three times ``size`` characters are held in memory.

    Args:
        blocks: the text, in order.
        chunk: "paragraph" cuts as described in ``cut``. "sentence" does the same at the end of a sentence. A sentence
            ends at a blank line, at a Chinese or Japanese end mark, or at another end mark that is followed by
            whitespace and an uppercase letter or opening quote. "window" cuts every ``size`` characters.
        size: approximate characters per document. If it is 0, the text is one document.
        overlap: number of characters that a window shares with the previous one.
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
            # The next block may begin with more of the newlines that end this paragraph.
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


#: Rule -> a function that returns where a piece stops, and a function that returns the maximum length of a remainder
#: that is not cut.
_RULES: dict[str, tuple[Callable[[str, int, int], int], Callable[[int], int]]] = {
    "paragraph": (_paragraph_stop, lambda size: size + size // 2),
    "sentence": (_sentence_stop, lambda size: size + size // 2),
    "window": (_window_stop, lambda size: size),
}
