"""Read .gz, .zst and .xz files. A damaged file is read up to the damage.

All members or frames of a file are read. In .gz and .xz files, nothing but zeros may follow the members.
"""

import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any

ENDINGS = (".gz", ".zst", ".xz")

#: The exceptions raised by reading an unreadable or damaged file. A network failure raises RequestError instead, and a
#: failing disk raises StorageError.
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)

#: Size of the buffer of decompressed bytes.
_BUFFER_BYTES = 1 << 20
#: The same for Arrow's reader, where a large buffer would slow down reading small files.
_ARROW_BUFFER_BYTES = 1 << 17
#: Stored bytes to read at a time, normally and close to damage.
_INPUT_BYTES = 1 << 16
_CAREFUL_INPUT_BYTES = 1 << 12


def decompressed(stream: IO[bytes], name: str) -> IO[bytes]:
    """Return a stream that decompresses a seekable stream. The suffix of ``name`` determines the compression.

    Reading damaged data raises one of ``DAMAGE``, after all bytes before the damage have been returned. ``stream`` is
    then positioned at the damage. Closing the returned stream also closes ``stream``.
    """
    name = name.lower()
    if name.endswith(".gz"):
        return _Owning(_UpToDamage(stream, _gzip, _gzip), _BUFFER_BYTES, stream)
    if name.endswith(".xz"):
        return _Owning(_UpToDamage(stream, _xz, _xz), _BUFFER_BYTES, stream)
    if name.endswith(".zst"):
        # Unlike zstandard's reader, Arrow's detects a truncated file, but it returns nothing from a damaged block.
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
    """The concatenated content of gzip members or xz streams."""

    def __init__(self, stream: Any, decompressor: Callable[[], Any], magic: bytes, kind: str) -> None:
        self._stream = stream
        self._new = decompressor
        self._magic = magic
        self._kind = kind
        self._decompressor: Any = None
        self._head = b""
        self._is_read = False

    def read(self, size: int) -> bytes:
        """Read at least one and at most ``size`` bytes. At the end of the stream, return an empty result."""
        while True:
            if (self._decompressor is None or self._decompressor.eof) and not self._begin():
                return b""
            if block := self._decompressor.decompress(self._input(), size):
                return bytes(block)
            if self._is_read and not self._decompressor.eof:
                raise EOFError("it is truncated")

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer. Returns the number of bytes."""
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def _begin(self) -> bool:
        """Start the next member. Returns whether there is one."""
        is_first = self._decompressor is None
        head = b"" if is_first else self._decompressor.unused_data.lstrip(b"\0")
        while len(head) < len(self._magic) and (block := self._next()):
            head = head + block if is_first else (head + block).lstrip(b"\0")
        if not head:
            return False
        if not head.startswith(self._magic):
            what = f"not {self._kind} data" if is_first else f"other data after the {self._kind} data"
            raise OSError(f"{what}: {head[: len(self._magic)]!r}")
        self._decompressor, self._head = self._new(), head
        return True

    def _input(self) -> bytes:
        """Return the decompressor's next input."""
        if self._head:
            head, self._head = self._head, b""
            return head
        # zlib hands back input that it has not used, while lzma keeps it.
        if tail := getattr(self._decompressor, "unconsumed_tail", b""):
            return bytes(tail)
        return self._next() if getattr(self._decompressor, "needs_input", True) else b""

    def _next(self) -> bytes:
        block: bytes = self._stream.read(_INPUT_BYTES)
        self._is_read = not block
        return block


class _UpToDamage(io.RawIOBase):
    """Reads from a fast decompressor. If that fails, an exact decompressor recovers all bytes before the damage."""

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
        """Return the remaining bytes before the damage, decompressed byte by byte. This reads the file again."""
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
    """A stream that is read byte by byte after ``start``, so that it stops exactly at the damage."""

    def __init__(self, stream: IO[bytes], start: int) -> None:
        self._stream = stream
        self._start = start

    def read(self, size: int) -> bytes:
        return self._stream.read(min(size, max(self._start - self._stream.tell(), 1), _CAREFUL_INPUT_BYTES))


class _Owning(io.BufferedReader):
    """A buffered reader that also closes the compressed stream from which its raw stream reads."""

    def __init__(self, raw: Any, buffer: int, under: IO[bytes]) -> None:
        super().__init__(raw, buffer)
        self._under = under

    def close(self) -> None:
        super().close()
        self._under.close()
