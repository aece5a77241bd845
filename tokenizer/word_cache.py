"""A word cache for a SentencePiece BPE. It encodes each distinct word only once, without changing the ids.

BPE only creates pieces that are in its vocabulary. If no piece contains a character of kind A followed by a character
of kind B (such as a letter before a space), then no merge crosses a boundary between two such characters. So a text can
be split into words at these boundaries, and its ids are the concatenated ids of its words. The kinds that may follow
each other are computed from the vocabulary, so the method is correct for any vocabulary. ``word_cache.c`` looks up the
words, and SentencePiece encodes the words that are not in the cache.
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

#: Maximum size of the cache in bytes. When it is full, new words are encoded but not cached.
LIMIT = 256 << 20

_SOURCE = Path(__file__).with_name("word_cache.c")
#: Kinds of characters, with the same numbers as in word_cache.c. There, U+2581 has a kind of its own and is always a
#: word by itself.
_LETTER, _DIGIT, _SPACE, _NEWLINE, _OTHER, _QUOTE, _WIDE = range(7)
_KINDS = 8
#: Bytes of text to scan at a time, which limits memory. A longer document is scanned in one piece.
_SCAN_BYTES = 8 << 20
#: New words are passed to SentencePiece in lines of about this many bytes, with a newline after each word. This needs
#: far fewer Python objects than one string per word, and keeps SentencePiece's merge queue small.
_LINE_BYTES = 1000
#: Text that any normalization other than identity would change.
_PROBE = "  \ufb01\u2460\t\u00a0x  \n\n \uff21\u0130 "


class WordCache:
    """A cache of words' ids for a SentencePiece model. A lock lets only one thread use it at a time."""

    def __init__(self, library: ctypes.CDLL, pieces: Any, joins: bytes, mark: list[int], limit: int = LIMIT) -> None:
        """Create an empty cache. Use ``of``, which checks the requirements first.

        Args:
            library: ``word_cache.c``, compiled.
            pieces: the ``SentencePieceProcessor``.
            joins: the result of ``word_joins``.
            mark: the three ids that encode a literal U+2581.
            limit: maximum size in bytes.
        """
        self._library, self._pieces = library, pieces
        self._newline = pieces.PieceToId("\n")
        self._settings = (joins, self._newline, (ctypes.c_int32 * 3)(*mark), limit)
        self._lock = threading.Lock()
        self._begin()

    @classmethod
    def of(cls, pieces: Any, mark: list[int]) -> "WordCache | None":
        """Create a model's cache. Returns None if the model cannot have a cache or the C code cannot be compiled."""
        joins = word_joins(pieces)
        library = None if joins is None else c_library.library(_SOURCE)
        if joins is None or library is None:
            return None
        return cls(_declared(library), pieces, joins, mark)

    @property
    def size(self) -> int:
        """Size of the cache in bytes: the table, the words and their ids."""
        return int(self._library.word_cache_size(self._cache))

    def encode(self, chunk: Any, end: int | None) -> Encoded:
        """Encode a ``StringArray`` or ``LargeStringArray``, and append ``end`` to each text unless it is None.

        Raises:
            MemoryError: there is not enough memory.
        """
        offsets, data = arrow_text.offsets(chunk), chunk.buffers()[2]
        text = 0 if data is None else data.address
        parts: list[Encoded] = []
        first = 0
        with self._lock:
            while first < len(chunk):
                last = int(np.searchsorted(offsets, offsets[first] + _SCAN_BYTES, side="right")) - 1
                last = min(max(last, first + 1), len(chunk))
                parts.append(self._scan(text, offsets[first : last + 1], -1 if end is None else end))
                first = last
        return arrow_text.joined(parts)

    def _begin(self) -> None:
        self._cache = self._library.word_cache_new(*self._settings)
        if not self._cache:
            raise MemoryError("not enough memory for the word cache")
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
                raise MemoryError("not enough memory for words") if total == -1 else AssertionError("a word has no ids")
        except BaseException:
            # Clear the cache, because words whose ids were requested but never delivered would stay pending.
            self._release()
            self._begin()
            raise
        ids = np.empty(total, np.int32)
        self._library.word_cache_take(self._cache, ids.ctypes.data, lengths.ctypes.data)
        return ids, lengths.astype(np.int32)

    def _encode_words(self, wanted: bytes) -> NDArray[np.int32]:
        """Encode words, each followed by a newline. The result has each word's ids, followed by the newline's id."""
        lines: list[str] = []
        start = 0
        while start < len(wanted):
            stop = wanted.find(b"\n", min(start + _LINE_BYTES, len(wanted)) - 1) + 1
            lines.append(wanted[start:stop].decode("utf-8", "replace"))
            start = stop
        encoded = self._pieces.Encode(lines, out_type=int, num_threads=1)
        return np.concatenate([np.asarray(ids, np.int32) for ids in encoded])


def word_joins(pieces: Any) -> bytes | None:
    """Return, for each kind of character, a bit mask of the kinds that follow it in any piece of the vocabulary.

    Returns None if words cannot be encoded one by one. There are two possible reasons. The model normalizes text
    before encoding it, or the newline, which separates the words, is not a piece of its own or is part of another one.
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
    """Return the kind of a character in a piece. In pieces, U+2581 stands for a space."""
    if character in " \u2581":
        return _SPACE
    if character == "\n":
        return _NEWLINE
    if character.isascii():
        return _LETTER if character.isalpha() else _DIGIT if character.isdigit() else _OTHER
    # General punctuation such as quotes and dashes, whose UTF-8 starts with E2 80.
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
