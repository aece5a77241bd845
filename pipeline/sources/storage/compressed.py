"""The bytes of .gz, .zst and .xz files, all of them up to the first damage.

Files of several members or frames are read to their end. Zeros may follow those of .gz and .xz, nothing else.
"""

import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any

ENDINGS = (".gz", ".zst", ".xz")

#: What reading an unreadable or damaged file raises; a network that stays broken is a RequestError,
#: a disk that fails a StorageError instead.
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)

#: Decompressed bytes that are held, and stored ones that are read at a time.
_BUFFER_BYTES = 1 << 20
#: The same of Arrow's reader, which does more work for a small file with a large buffer.
_ARROW_BUFFER_BYTES = 1 << 17
_INPUT_BYTES = 1 << 16
_CAREFUL_INPUT_BYTES = 1 << 12


def decompressed(stream: IO[bytes], name: str) -> IO[bytes]:
    """The bytes of a seekable stream whose name says how it is compressed; closing it closes ``stream``.

    Where it is damaged, all bytes before come first, then one of ``DAMAGE``; ``stream`` then stands at the damage.
    """
    name = name.lower()
    if name.endswith(".gz"):
        return _Owning(_UpToDamage(stream, _gzip, _gzip), _BUFFER_BYTES, stream)
    if name.endswith(".xz"):
        return _Owning(_UpToDamage(stream, _xz, _xz), _BUFFER_BYTES, stream)
    if name.endswith(".zst"):
        # Arrow's reader, unlike zstandard's, notices a file that ends early, but gives nothing of a piece that breaks.
        return _Owning(_UpToDamage(stream, _arrow_zstd, _zstandard), _ARROW_BUFFER_BYTES, stream)
    return stream


def _gzip(stream: Any) -> "_Members":
    return _Members(stream, lambda: zlib.decompressobj(wbits=31), b"\x1f\x8b", "gzip")


def _xz(stream: Any) -> "_Members":
    return _Members(stream, lzma.LZMADecompressor, b"\xfd7zXZ\0", "xz")


def _arrow_zstd(stream: Any) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd")


def _zstandard(stream: Any) -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=False)


class _Members:
    """What gzip members or xz streams hold, one after the other."""

    def __init__(self, stream: Any, decompressor: Callable[[], Any], magic: bytes, kind: str) -> None:
        self._stream = stream
        self._new = decompressor
        self._magic = magic
        self._kind = kind
        self._decompressor: Any = None
        self._head = b""
        self._is_read = False

    def read(self, size: int) -> bytes:
        """At least one byte and at most ``size``; nothing at the end."""
        while True:
            if (self._decompressor is None or self._decompressor.eof) and not self._begin():
                return b""
            if block := self._decompressor.decompress(self._input(), size):
                return bytes(block)
            if self._is_read and not self._decompressor.eof:
                raise EOFError("cut off before its end")

    def readinto(self, buffer: Any) -> int:
        """The same into a buffer; how many bytes."""
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def _begin(self) -> bool:
        """Begin with the next member; whether there is one."""
        is_first = self._decompressor is None
        head = b"" if is_first else self._decompressor.unused_data.lstrip(b"\0")
        while len(head) < len(self._magic) and (block := self._next()):
            head = head + block if is_first else (head + block).lstrip(b"\0")
        if not head:
            return False
        if not head.startswith(self._magic):
            what = f"not {self._kind} data" if is_first else f"something else follows the {self._kind} data"
            raise OSError(f"{what}: {head[: len(self._magic)]!r}")
        self._decompressor, self._head = self._new(), head
        return True

    def _input(self) -> bytes:
        """What the decompressor is to have next."""
        if self._head:
            head, self._head = self._head, b""
            return head
        # zlib gives back what it had no room for, lzma keeps it.
        if tail := getattr(self._decompressor, "unconsumed_tail", b""):
            return bytes(tail)
        return self._next() if getattr(self._decompressor, "needs_input", True) else b""

    def _next(self) -> bytes:
        block: bytes = self._stream.read(_INPUT_BYTES)
        self._is_read = not block
        return block


class _UpToDamage(io.RawIOBase):
    """A decompressor's bytes; where it breaks, first all those that another can make of what is before the damage."""

    def __init__(self, stream: IO[bytes], fast: Callable[[Any], Any], exact: Callable[[Any], Any]) -> None:
        self._stream = stream
        self._opened = fast(stream)
        self._exact = exact
        self._returned = 0
        self._damage: Exception | None = None
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._damage is None:
            try:
                size: int = self._opened.readinto(buffer)
                if not size and not self._stream.tell():
                    raise EOFError("it is empty")
                self._returned += size
                return size
            except DAMAGE as error:
                self._damage = error
                self._rest = self._before_damage()
        block, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        if not block:
            raise self._damage
        buffer[: len(block)] = block
        return len(block)

    def _before_damage(self) -> bytes:
        """What can still be decompressed, byte by byte, which takes reading the file once more."""
        import zstandard

        careful = _Careful(self._stream, self._stream.tell() - 2 * _INPUT_BYTES)
        self._stream.seek(0)
        opened = self._exact(careful)
        content = bytearray()
        left = self._returned
        try:
            while left and (block := opened.read(min(left, _BUFFER_BYTES))):
                left -= len(block)
            while byte := opened.read(1):
                content += byte
        except (zstandard.ZstdError, *DAMAGE):
            pass
        return bytes(content)


class _Careful:
    """A stream that is read byte by byte from some byte on, so that it stands where its decompressor broke."""

    def __init__(self, stream: IO[bytes], start: int) -> None:
        self._stream = stream
        self._start = start

    def read(self, size: int) -> bytes:
        return self._stream.read(min(size, max(self._start - self._stream.tell(), 1), _CAREFUL_INPUT_BYTES))


class _Owning(io.BufferedReader):
    """A buffered reader that closes also what its raw stream reads from."""

    def __init__(self, raw: Any, buffer: int, under: IO[bytes]) -> None:
        super().__init__(raw, buffer)
        self._under = under

    def close(self) -> None:
        super().close()
        self._under.close()
