"""Normalize line breaks, mojibake, control characters, Unicode form and outer whitespace, in a column or a single text.

A column's bytes show which of its texts may need to be normalized. The other texts, which are the great majority in
ordinary data, are left untouched.
"""

import importlib
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import pyarrow

from artefacts.errors import RequestError
from pipeline.cleaning import column
from pipeline.cleaning.column import Ints, Mask

Form = Literal["NFC", "NFKC", "none"]

#: A line break according to ``str.splitlines`` and XML 1.1 (section 2.11), other than LF alone. A vertical tab or form
#: feed is part of the break that follows it, so a page break before a newline does not create an empty line.
_BREAKS = re.compile("[\x0b\x0c]*\r[\n\x85]?|[\x0b\x0c]+[\n\x85]?|[\x1c-\x1e\x85\u2028\u2029]")
#: The unit separator separates words, like a tab.
_SEPARATOR = "\x1f"
#: Other control characters (C0 and C1, but not tab), byte order marks, and surrogates, which UTF-8 cannot encode.
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x9f\ufeff\ud800-\udfff]")
#: Code points below this are looked up in a table. Texts with higher code points are always processed.
_KNOWN = 0x20000


def normalize(text: str, form: Form) -> str:
    """Convert line breaks to LF and Unicode to ``form``.

    Control characters, leading LFs and trailing whitespace are removed.
    """
    return _composed(_plain(text), form).rstrip().lstrip("\n")


def _plain(text: str) -> str:
    """Replace line breaks with LF and unit separators with a space, and remove other control characters except tab."""
    return _UNWANTED.sub("", _BREAKS.sub("\n", text).replace(_SEPARATOR, " "))


def _composed(text: str, form: Form) -> str:
    if form == "none" or unicodedata.is_normalized(form, text):
        return text
    return unicodedata.normalize(form, text)


class _Faults(NamedTuple):
    """Masks of the texts that normalization may change.

    Attributes:
        any: texts that may change for any reason.
        controls: texts with control characters, or with line breaks other than LF.
        wide: texts that are not ASCII.
    """

    any: Mask
    controls: Mask
    wide: Mask


class Normalizer:
    """Applies ``normalize`` to columns, optionally after fixing mojibake."""

    def __init__(self, form: Form, fix_text: bool) -> None:
        """Initialize from the values of ``clean.unicode`` and ``clean.fix_text``.

        Raises:
            RequestError: ``fix_text`` needs ftfy, which is not installed.
        """
        self._form = form
        self._fix_encoding = _ftfy() if fix_text else None

    def __call__(self, texts: pyarrow.LargeStringArray) -> pyarrow.LargeStringArray:
        """Normalize a column. Mojibake is fixed first."""
        faults = self._faults(column.view(texts))
        indices = np.flatnonzero(faults.any)
        fixed = []
        chosen = texts.take(pyarrow.array(indices)).to_pylist()
        rows = zip(chosen, faults.wide[indices].tolist(), faults.controls[indices].tolist(), strict=True)
        for text, is_wide, has_controls in rows:
            if self._fix_encoding and is_wide:
                fixed.append(normalize(self._fix_encoding(text), self._form))
            else:
                fixed.append(_composed(_plain(text) if has_controls else text, self._form).rstrip().lstrip("\n"))
        return column.replaced(texts, indices, fixed)

    def text(self, text: str) -> str:
        """Normalize a single text in the same way as the texts of a column."""
        return normalize(self._fix_encoding(text) if self._fix_encoding and not text.isascii() else text, self._form)

    def _faults(self, texts: column.Column) -> _Faults:
        offsets, content = texts
        # A single comparison detects all bytes below space, DEL, and the bytes of non-ASCII characters.
        places = np.flatnonzero(content - np.uint8(0x20) >= np.uint8(0x5F))
        unusual = content[places]
        controls = places[_CONTROL[unusual]]
        leads = places[unusual >= 0xC2]
        codes = np.minimum(column.wide(content, leads), _KNOWN)
        controls = np.concatenate([controls, leads[(codes < 0xA0) | ((codes | 1) == 0x2029) | (codes == 0xFEFF)]])
        is_wide, has_controls = _holders(offsets, leads), _holders(offsets, controls)
        changed = has_controls | _holders(offsets, leads[~_inert(self._form)[codes]])
        if self._fix_encoding:
            changed |= is_wide
        filled = np.flatnonzero(np.diff(offsets))
        first, last = content[offsets[filled]], content[offsets[filled + 1] - 1]
        changed[filled[(first == ord("\n")) | _SPACE_ENDS[last]]] = True
        return _Faults(changed, has_controls, is_wide)


def _holders(offsets: Ints, places: Ints) -> Mask:
    """Return a mask of the texts that contain at least one of the positions."""
    contains = np.zeros(len(offsets) - 1, bool)
    contains[np.searchsorted(offsets, places, side="right") - 1] = True
    return contains


def _control_bytes() -> Mask:
    code = np.arange(256)
    return ((code < 0x20) & (code != ord("\t")) & (code != ord("\n"))) | (code == 0x7F)


def _space_ends() -> Mask:
    """Return a mask of the last bytes of whitespace characters (``str.isspace``). Some other characters share them."""
    ends = np.zeros(256, bool)
    ends[[chr(code).encode()[-1] for code in range(0x3001) if chr(code).isspace()]] = True
    return ends


_CONTROL, _SPACE_ENDS = _control_bytes(), _space_ends()


@lru_cache(maxsize=3)
def _inert(form: Form) -> Mask:
    """Return a mask of the code points that normalization never changes, regardless of their context.

    The last entry represents all higher code points.
    """
    inert = np.ones(_KNOWN + 1, bool)
    if form == "none":
        return inert
    for code in range(0x80, _KNOWN):
        character = chr(code)
        if (
            0xD800 <= code < 0xE000
            or unicodedata.combining(character)
            or not unicodedata.is_normalized(form, character)
        ):
            inert[code] = False
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and parts[0][0] != "<":
            inert[int(parts[1], 16)] = False
    # Korean vowels and final consonants, which compose with the preceding characters.
    inert[0x1161:0x1176] = inert[0x11A8:0x11C3] = False
    inert[_KNOWN] = False
    return inert


def _ftfy() -> Callable[[str], str]:
    try:
        fix_encoding: Callable[[str], str] = importlib.import_module("ftfy").fix_encoding
    except ImportError:
        raise RequestError("data.clean.fix_text needs the package ftfy: pip install ftfy") from None
    return fix_encoding
