"""Replace email addresses, public IP addresses and phone numbers with placeholders of the same kind.

The placeholders are reserved for examples: example.com (RFC 2606), 192.0.2.1 and 2001:db8::1 (RFC 5737, RFC 3849),
202-555-0100 (a North American number reserved for fiction). Masking does not change them.

- Email: a local part made of the characters in RFC 5322's dot-atom, "@", and a domain with at least two labels.
- IP: four numbers up to 255 separated by dots, unless they are part of a longer sequence or a word; or groups of
  hexadecimal digits separated by colons. Only public addresses are masked (``ipaddress.is_global``).
- Phone: "+" and 8 to 15 digits, with or without grouping (ITU-T E.164); or a US number that has separators and
  whose area and exchange codes begin with 2 to 9. Plain digit sequences are kept, because most are not phone numbers.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as compute

from pipeline.cleaning import column

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_EMAIL = rf"\b{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)+{_LABEL}"
_EMAIL_PLACEHOLDER = "email@example.com"

_HEXADECIMAL = "[0-9A-Fa-f]"
_IP = re.compile(
    r"(?<![\w.])(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?:25[0-5]|2[0-4]\d|1?\d?\d)){3}(?!\.?\w)"
    rf"|(?<![\w:.]){_HEXADECIMAL}{{1,4}}:(?:{_HEXADECIMAL}{{0,4}}:){{1,6}}{_HEXADECIMAL}{{1,4}}(?![\w:])",
    re.ASCII,
)
_PHONE = re.compile(
    r"(?<![\w+])\+(?:[1-9]\d{7,14}|[1-9]\d{0,2}(?:[ .-]?\(\d{1,4}\))?[ .-]?\d{2,5}(?:[ .-]\d{2,5}){1,4})(?!\w)"
    r"|(?<![\w.+-])(?<!::)(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}(?![\w-])",
    re.ASCII,
)
# RE2 patterns for quickly finding texts that may contain an IP address or phone number.
_MAYBE_IP = rf"[0-9]\.[0-9]{{1,3}}\.[0-9]{{1,3}}\.[0-9]|{_HEXADECIMAL}:{_HEXADECIMAL}{{0,4}}:{_HEXADECIMAL}{{1,4}}"
_MAYBE_PHONE = r"\+[1-9][0-9 .(-]|[0-9]{3}\)? ?[.-]?[0-9]{3}[.-][0-9]{4}"


class Masked(NamedTuple):
    """Texts after masking.

    Attributes:
        texts: the masked texts.
        counts: number of replacements by kind, not counting placeholders that were already in the text.
    """

    texts: pyarrow.LargeStringArray
    counts: dict[str, int]


def mask(texts: pyarrow.LargeStringArray, kinds: Sequence[str]) -> Masked:
    """Replace personal data of these kinds (``email``, ``ip``, ``phone``) in the texts."""
    counts: dict[str, int] = {}
    if "email" in kinds:
        texts, counts["email"] = _emails(texts)
    if "ip" in kinds:
        texts, counts["ip"] = _replace_matches(texts, _MAYBE_IP, _IP, _public_address)
    if "phone" in kinds:
        texts, counts["phone"] = _replace_matches(texts, _MAYBE_PHONE, _PHONE, _phone)
    return Masked(texts, counts)


def _emails(texts: pyarrow.LargeStringArray) -> tuple[pyarrow.LargeStringArray, int]:
    rows = np.flatnonzero(column.mask(compute.match_substring(texts, "@")))
    chosen = texts.take(pyarrow.array(rows))
    masked = compute.replace_substring_regex(chosen, _EMAIL, _EMAIL_PLACEHOLDER)
    # Put each address between two NULs, so that addresses and existing placeholders can be counted.
    marked = compute.replace_substring_regex(chosen, _EMAIL, "\0\\0\0")
    count = (_times(marked, "\0") - _times(chosen, "\0")) // 2 - _times(marked, f"\0{_EMAIL_PLACEHOLDER}\0")
    return column.replaced(texts, rows, masked.to_pylist()), count


def _times(texts: pyarrow.LargeStringArray, part: str) -> int:
    return int(compute.sum(compute.count_substring(texts, part)).as_py() or 0)


def _replace_matches(
    texts: pyarrow.LargeStringArray, maybe: str, pattern: re.Pattern[str], placeholder: Callable[[str], str]
) -> tuple[pyarrow.LargeStringArray, int]:
    """Replace the pattern's matches. Only texts in which RE2 finds the faster pattern ``maybe`` are searched."""
    rows = np.flatnonzero(column.mask(compute.match_substring_regex(texts, maybe)))
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        replacement = placeholder(match[0])
        count += replacement != match[0]
        return replacement

    replaced = [pattern.sub(replace, text) for text in texts.take(pyarrow.array(rows)).to_pylist()]
    return column.replaced(texts, rows, replaced), count


def _public_address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if not address.is_global:
        return text
    return "192.0.2.1" if address.version == 4 else "2001:db8::1"


def _phone(text: str) -> str:
    digits = sum(map(str.isdigit, text))
    return "202-555-0100" if 8 <= digits <= 15 else text
