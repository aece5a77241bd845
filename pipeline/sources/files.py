"""Source files: found below a path, fingerprinted, opened whatever their compression."""

import glob
import gzip
import hashlib
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, cast

from configs.errors import RequestError

_COMPRESSED = (".gz", ".zst", ".xz")
#: Sources up to this size are fingerprinted by their whole content, larger ones by both ends of each file.
_WHOLE_BYTES = 64 << 20
_END_BYTES = 4096


#: What reading an unreadable or damaged file raises.
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)


def find(pattern: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of a path, folder (searched below, by suffix, compressed or not) or glob: name -> path, in name order.

    Names are relative to the folder, so that moving it changes nothing; what is not UTF-8 in them is spelt out.

    Raises:
        RequestError: nothing is there.
    """
    given = Path(pattern).expanduser()
    if given.is_file():
        return {_writable(given.name): given}
    if given.is_dir():
        inside = (path for path in given.rglob("*") if path.is_file() and _plain_suffix(path) in suffixes)
        found = {path.relative_to(given).as_posix(): path for path in inside}
        found = {name: path for name, path in found.items() if not any(p.startswith(".") for p in name.split("/"))}
        if not found:
            raise RequestError(f"data.source.path: {pattern} holds no file ending in {', '.join(suffixes)}")
    else:
        # pathlib globs below a folder only; a pattern may begin anywhere.
        paths = [Path(name) for name in glob.glob(str(given), recursive=True)]  # noqa: PTH207
        parents = [path.parent.as_posix() for path in paths]
        root = Path(_common(parents)) if parents else given
        found = {path.relative_to(root).as_posix(): path for path in paths if path.is_file()}
        if not found:
            raise RequestError(f"data.source.path: {pattern} is neither a file nor a folder, and no file matches it")
    return {_writable(name): path for name, path in sorted(found.items())}


def _writable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _common(folders: list[str]) -> str:
    first, last = min(folders).split("/"), max(folders).split("/")
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return "/".join(first[:same]) or ("/" if folders[0].startswith("/") else ".")


def _plain_suffix(path: Path) -> str:
    name = path.name
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix.lower()


def fingerprints(found: dict[str, Path]) -> dict[str, str]:
    """One fingerprint for the files of a source: their names, sizes and content, of a large source only the ends."""
    whole = hashlib.sha256()
    sizes = {name: path.stat().st_size for name, path in found.items()}
    ends_only = sum(sizes.values()) > _WHOLE_BYTES
    for name, path in found.items():
        whole.update(f"{name}\0{sizes[name]}\0".encode())
        try:
            with open(path, "rb") as stream:
                if ends_only and sizes[name] > 2 * _END_BYTES:
                    whole.update(stream.read(_END_BYTES))
                    stream.seek(-_END_BYTES, io.SEEK_END)
                whole.update(stream.read())
        except OSError as error:
            # Reading it will fail alike, and be counted there.
            whole.update(str(error.strerror).encode())
    return {"files": whole.hexdigest()}


def open_binary(path: Path) -> IO[bytes]:
    """The decompressed bytes of a plain, .gz, .zst or .xz file; damage raises one of ``DAMAGE``."""
    if path.name.endswith(".gz"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.name.endswith(".xz"):
        return cast(IO[bytes], lzma.open(path, "rb"))
    if path.name.endswith(".zst"):
        import pyarrow

        # Arrow's reader, unlike zstandard's, notices a file that ends early.
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return open(path, "rb")
