"""Encode each distinct word once: a SentencePiece BPE behind a cache of words, with the same ids.

A byte-pair encoding only ever makes pieces of its vocabulary. Where no piece holds two kinds of character one after the
other (a letter before a space, a digit beside anything, ...), no merge crosses the place between two such characters,
and the ids of a text are those of its words between such places. The table of kinds is read off the vocabulary, so it
holds for any; ``word_cache.c`` looks the words up, and SentencePiece is given those that it has not seen.
"""

import ctypes
import threading
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artefacts import c_library
from tokenizer import arrow_text
from tokenizer.arrow_text import Encoded

#: Bytes of words and their ids that a cache keeps; what is new beyond is encoded and not kept.
LIMIT = 256 << 20

_SOURCE = Path(__file__).with_name("word_cache.c")
#: Kinds of character, by their number in word_cache.c, which has one more for U+2581: that joins with nothing.
_LETTER, _DIGIT, _SPACE, _NEWLINE, _OTHER, _QUOTE, _WIDE = range(7)
_KINDS = 8
#: Text scanned at once, which bounds the scratch memory; a longer document is scanned whole.
_SCAN_BYTES = 8 << 20
#: New words go to SentencePiece as lines of about so many bytes, a newline behind each word: far fewer Python objects
#: than one for each word, and short enough that its queue of merges stays small.
_LINE_BYTES = 1000
#: Characters that other normalisations than ours would change.
_PROBE = "  \ufb01\u2460\t\u00a0x  \n\n \uff21\u0130 "


class WordCache:
    """Ids of the words seen so far, over a SentencePiece model. Threads take turns."""

    def __init__(self, library: ctypes.CDLL, pieces: Any, joins: bytes, mark: list[int], limit: int = LIMIT) -> None:
        """Begin empty; ``of`` checks what this relies on.

        Args:
            library: ``word_cache.c``, compiled.
            pieces: the ``SentencePieceProcessor``.
            joins: see ``word_joins``.
            mark: the three ids of a U+2581 in the text.
            limit: bytes to keep.
        """
        self._library, self._pieces = library, pieces
        self._newline = pieces.PieceToId("\n")
        self._settings = (joins, self._newline, (ctypes.c_int32 * 3)(*mark), limit)
        self._turn = threading.Lock()
        self._begin()

    @classmethod
    def of(cls, pieces: Any, mark: list[int]) -> "WordCache | None":
        """A cache over a model; None where its vocabulary does not allow one or the C code cannot be compiled."""
        joins = word_joins(pieces)
        library = None if joins is None else c_library.library(_SOURCE)
        if joins is None or library is None:
            return None
        return cls(_declared(library), pieces, joins, mark)

    @property
    def size(self) -> int:
        """Bytes that are kept: the table, words and their ids."""
        return int(self._library.word_cache_size(self._cache))

    def encode(self, chunk: Any, end: int | None) -> Encoded:
        """Ids of the texts of a ``StringArray`` or ``LargeStringArray``, ``end`` behind each.

        Raises:
            MemoryError: there is not enough.
        """
        offsets, data = arrow_text.offsets(chunk), chunk.buffers()[2]
        text = 0 if data is None else data.address
        parts: list[Encoded] = []
        first = 0
        with self._turn:
            while first < len(chunk):
                last = int(np.searchsorted(offsets, offsets[first] + _SCAN_BYTES, side="right")) - 1
                last = min(max(last, first + 1), len(chunk))
                parts.append(self._scan(text, offsets[first : last + 1], -1 if end is None else end))
                first = last
        return arrow_text.joined(parts)

    def _begin(self) -> None:
        self._cache = self._library.word_cache_new(*self._settings)
        if not self._cache:
            raise MemoryError("no memory for a cache of words")
        self._release = weakref.finalize(self, self._library.word_cache_free, self._cache)

    def _scan(self, text: int, offsets: NDArray[np.int64], end: int) -> Encoded:
        lengths = np.empty(len(offsets) - 1, np.int64)
        try:
            total = self._library.word_cache_scan(
                self._cache, text, offsets.ctypes.data, len(lengths), end, lengths.ctypes.data
            )
            size = ctypes.c_int64()
            wanted = self._library.word_cache_wanted(self._cache, ctypes.byref(size))
            if total >= 0 and size.value:
                answers = self._encode_words(ctypes.string_at(wanted, size.value))
                total = self._library.word_cache_resolve(self._cache, answers.ctypes.data, len(answers))
            if total < 0:
                raise MemoryError("no memory for words") if total == -1 else AssertionError("a word without its ids")
        except BaseException:
            # Words that were asked for and not answered would stay so.
            self._release()
            self._begin()
            raise
        ids = np.empty(total, np.int32)
        self._library.word_cache_take(self._cache, ids.ctypes.data, lengths.ctypes.data)
        return ids, lengths.astype(np.int32)

    def _encode_words(self, wanted: bytes) -> NDArray[np.int32]:
        """Ids of words that each have a newline behind them, that of the newline behind those of each word."""
        lines: list[str] = []
        start = 0
        while start < len(wanted):
            stop = wanted.find(b"\n", min(start + _LINE_BYTES, len(wanted)) - 1) + 1
            lines.append(wanted[start:stop].decode("utf-8", "replace"))
            start = stop
        encoded = self._pieces.Encode(lines, out_type=int, num_threads=1)
        return np.concatenate([np.asarray(ids, np.int32) for ids in encoded])


def word_joins(pieces: Any) -> bytes | None:
    """For each kind of character, a bit for each kind that follows it somewhere in a piece of the vocabulary.

    None where words could not be encoded one by one: the newline is no piece of its own (it separates the words), or
    the model changes text before it encodes it.
    """
    newline = pieces.PieceToId("\n")
    if pieces.EncodeAsIds("\n") != [newline] or pieces.DecodeIds(pieces.EncodeAsIds(_PROBE)) != _PROBE:
        return None
    pairs: set[tuple[str, str]] = set()
    for token in range(pieces.GetPieceSize()):
        if token == newline or pieces.IsControl(token) or pieces.IsUnknown(token) or pieces.IsByte(token):
            continue
        piece = pieces.IdToPiece(token)
        if "\n" in piece:
            return None
        pairs.update(pairwise(piece))
    joins = bytearray(_KINDS)
    for before, after in pairs:
        joins[_kind(before)] |= 1 << _kind(after)
    return bytes(joins)


def _kind(character: str) -> int:
    """The kind of a character as a piece spells it: U+2581 stands for a space."""
    if character in " \u2581":
        return _SPACE
    if character == "\n":
        return _NEWLINE
    if character.isascii():
        return _LETTER if character.isalpha() else _DIGIT if character.isdigit() else _OTHER
    # General punctuation, E2 80 .. in UTF-8: quotes and dashes.
    return _QUOTE if "\u2000" <= character <= "\u203f" else _WIDE


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
        ("new", pointer, [ctypes.c_char_p, ctypes.c_int32, pointer, ctypes.c_uint64]),
        ("free", None, [pointer]),
        ("size", number, [pointer]),
        ("scan", number, [pointer, pointer, pointer, number, ctypes.c_int32, pointer]),
        ("wanted", pointer, [pointer, pointer]),
        ("resolve", number, [pointer, pointer, number]),
        ("take", None, [pointer, pointer, pointer]),
    ):
        function = getattr(library, f"word_cache_{name}")
        function.restype, function.argtypes = result, arguments
    return library
