"""Files that are of another kind than their name says, known by their first bytes."""

from typing import IO

#: First bytes of a file -> what it is, and what to do about it.
_SIGNATURES = {
    b"\x1f\x8b\x08": ("gzip-compressed", "give these files names that end in .gz"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "give these files names that end in .zst"),
    b"\xfd7zXZ\0": ("xz-compressed", "give these files names that end in .xz"),
    b"BZh91AY&SY": ("bzip2-compressed", "unpack these files (bunzip2)"),
    b"PK\x03\x04": ("a zip archive", "unpack these files"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack these files"),
    # Four letters alone might begin a text; a page of a column follows them.
    b"PAR1\x15": ("parquet", "set kind to parquet for these files"),
    b"%PDF-": ("PDF", "extract the text of these files"),
}
_LONGEST = max(map(len, _SIGNATURES))
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: Begins the reasons by which such files are counted.
_REASON = "the file is "
#: Reason -> cure.
HINTS = {f"{_REASON}{what}": cure for what, cure in _SIGNATURES.values()}


def peek(stream: IO[bytes]) -> bytes:
    """The first bytes of a buffered stream that stands at its beginning; they stay to be read."""
    head: bytes = stream.peek(_LONGEST)  # type: ignore[attr-defined]
    return head


def other_kind(head: bytes) -> str | None:
    """Why a file that begins so holds no text as it is, for ``BadInputs``; None: nothing is known against it."""
    return next((f"{_REASON}{what}" for begin, (what, _) in _SIGNATURES.items() if head.startswith(begin)), None)


def is_json_array(head: bytes) -> bool:
    """Whether text that begins so is one JSON array, whatever space or byte order mark is before it."""
    return head.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"[")
