"""Detect files whose first bytes indicate a different format than their names suggest."""

from typing import IO

#: First bytes of a file -> its format, and what to do about it.
_SIGNATURES = {
    b"\x1f\x8b\x08": ("gzip-compressed", "rename these files so that their names end in .gz"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "rename these files so that their names end in .zst"),
    b"\xfd7zXZ\0": ("xz-compressed", "rename these files so that their names end in .xz"),
    b"BZh91AY&SY": ("bzip2-compressed", "unpack these files (bunzip2)"),
    b"PK\x03\x04": ("a zip archive", "unpack these files"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack these files"),
    # A text might begin with the four letters PAR1. In a Parquet file, the next byte starts a column's first page.
    b"PAR1\x15": ("parquet", "set kind to parquet for these files"),
    b"%PDF-": ("PDF", "extract the text of these files"),
}
_LONGEST = max(map(len, _SIGNATURES))
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: Prefix of the reasons for such files.
_REASON = "the file is "
#: Reason -> what to do about such files.
HINTS = {f"{_REASON}{what}": hint for what, hint in _SIGNATURES.values()}


def peek(stream: IO[bytes]) -> bytes:
    """Return the first bytes of a buffered stream, without consuming them."""
    head: bytes = stream.peek(_LONGEST)  # type: ignore[attr-defined]
    return head


def other_kind(head: bytes) -> str | None:
    """Return why a file with these first bytes is not text (a reason for ``BadInputs``), or None if it may be text."""
    return next((f"{_REASON}{what}" for begin, (what, _) in _SIGNATURES.items() if head.startswith(begin)), None)


def is_json_array(head: bytes) -> bool:
    """Return whether text with these first bytes is a JSON array, ignoring whitespace and a byte order mark."""
    return head.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"[")
