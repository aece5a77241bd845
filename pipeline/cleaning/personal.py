"""Masking of e-mail addresses, public IP addresses and phone numbers by placeholders of the same kind.

The placeholders are reserved for examples: example.com (RFC 2606), 192.0.2.1 and 2001:db8::1 (RFC 5737, RFC 3849),
202-555-0100 (North American numbers for fiction). They are masked as themselves.

- E-mail: a local part of the characters of RFC 5322's dot-atom, "@", and a domain of two labels or more.
- IP: four numbers up to 255 with dots between, not part of a longer such row or of a word; groups of hexadecimal
  digits; both only where the address is public (``ipaddress.is_global``).
- Phone: "+" and 8 to 15 digits, in one piece or in groups (ITU-T E.164); or a US number with separators, area and
  exchange codes beginning with 2 to 9. Plain rows of digits stay: most are no phone numbers.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow
import pyarrow.compute as compute

from pipeline.cleaning import column

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_EMAIL = rf"\b{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)+{_LABEL}"

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
# RE2 tells which texts may hold one.
_MAYBE_IP = rf"[0-9]\.[0-9]{{1,3}}\.[0-9]{{1,3}}\.[0-9]|{_HEXADECIMAL}:{_HEXADECIMAL}{{0,4}}:{_HEXADECIMAL}{{1,4}}"
_MAYBE_PHONE = r"\+[1-9][0-9 .(-]|[0-9]{3}\)? ?[.-]?[0-9]{3}[.-][0-9]{4}"


def mask(texts: pyarrow.LargeStringArray, kinds: Sequence[str]) -> pyarrow.LargeStringArray:
    """The texts with personal data of the kinds (``email``, ``ip``, ``phone``) replaced."""
    if "email" in kinds:
        texts = _emails(texts)
    if "ip" in kinds:
        texts = _each(texts, _MAYBE_IP, _IP, _public_address)
    if "phone" in kinds:
        texts = _each(texts, _MAYBE_PHONE, _PHONE, _phone)
    return texts


def _emails(texts: pyarrow.LargeStringArray) -> pyarrow.LargeStringArray:
    found = np.flatnonzero(column.mask(compute.match_substring(texts, "@")))
    chosen = texts.take(pyarrow.array(found))
    return column.replaced(
        texts, found, compute.replace_substring_regex(chosen, _EMAIL, "email@example.com").to_pylist()
    )


def _each(
    texts: pyarrow.LargeStringArray, maybe: str, pattern: re.Pattern[str], placeholder: Callable[[re.Match[str]], str]
) -> pyarrow.LargeStringArray:
    """Replace the pattern's matches in the texts that RE2 finds ``maybe`` in."""
    found = np.flatnonzero(column.mask(compute.match_substring_regex(texts, maybe)))
    chosen = texts.take(pyarrow.array(found)).to_pylist()
    return column.replaced(texts, found, [pattern.sub(placeholder, text) for text in chosen])


def _public_address(match: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return match[0]
    if not address.is_global:
        return match[0]
    return "192.0.2.1" if address.version == 4 else "2001:db8::1"


def _phone(match: re.Match[str]) -> str:
    digits = sum(map(str.isdigit, match[0]))
    return "202-555-0100" if 8 <= digits <= 15 else match[0]
