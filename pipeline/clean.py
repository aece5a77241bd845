"""Cleaning of one document: newlines, Unicode, control characters, length. Pure functions of the text."""

import re
import unicodedata
from typing import Literal

from configs.schema.data import CleanSection

#: Control characters (C0 and C1) but tab and newline, byte order marks, and surrogates, which UTF-8 cannot hold.
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")

TOO_SHORT = "shorter than clean.min_chars"
TOO_LONG = "longer than clean.max_chars"
DUPLICATE = "the same text as an earlier document"


def normalise(text: str, form: Literal["NFC", "NFKC", "none"]) -> str:
    """Newlines as LF, Unicode in ``form``, no control characters, no blank lines around, no space at the end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _UNWANTED.sub("", text)
    if form != "none" and not unicodedata.is_normalized(form, text):
        text = unicodedata.normalize(form, text)
    return text.rstrip().lstrip("\n")


def fault(text: str, section: CleanSection) -> str | None:
    """Why a normalised text is to be dropped; None: it is kept."""
    if len(text) < max(section.min_chars, 1):
        return TOO_SHORT
    if len(text) > section.max_chars:
        return TOO_LONG
    return None
