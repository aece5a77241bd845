"""Convert files in other encodings to UTF-8 while reading them."""

import codecs
import io
from typing import IO, Any

#: The default encoding of files.
UTF8 = "utf-8"
_BLOCK_BYTES = 1 << 20


def fault(encoding: str) -> str:
    """Return the reason to report for an input that cannot be decoded."""
    return "invalid UTF-8" if encoding == UTF8 else f"invalid {encoding}"


def _undecodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace invalid input with a byte that is invalid in UTF-8, so that its line or record is counted as bad."""
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    if isinstance(error, UnicodeEncodeError):
        return b"\xff", error.end
    raise error


_MARKED = "millrace-undecodable"
codecs.register_error(_MARKED, _undecodable)


def as_utf8(stream: IO[bytes], encoding: str) -> IO[bytes]:
    """Recode a stream from an encoding to UTF-8, without a byte order mark. Invalid input becomes invalid UTF-8."""
    return io.BufferedReader(_Recoded(stream, encoding), _BLOCK_BYTES)


class _Recoded(io.RawIOBase):
    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(_MARKED)
        self._begun = False
        self._ready = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._ended:
            # A larger read would lose the bytes before any damage.
            block = self._stream.read1(_BLOCK_BYTES)
            self._ended = not block
            text = self._decoder.decode(block, self._ended)
            if text and not self._begun:
                self._begun, text = True, text.removeprefix("\ufeff")
            self._ready = text.encode("utf-8", _MARKED)
        block_out = self._ready[: len(buffer)]
        self._ready = self._ready[len(block_out) :]
        buffer[: len(block_out)] = block_out
        return len(block_out)
