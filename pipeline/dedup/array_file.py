"""Files that hold several arrays, written atomically and memory-mapped for reading.

Each array begins at a multiple of 64 bytes with a 64-byte header: magic, number of remaining arrays including this one,
numpy dtype string, rows, and columns (-1 for a 1-D array). The array's values follow. npy files are not used, because a
reduce task opens a file for every part of the corpus, and npy headers take longer to parse.
"""

import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artefacts import atomic
from artefacts.errors import RequestError

SUFFIX = ".arrays"
_MAGIC = b"MRARRAY1"
_HEADER = struct.Struct("<8sq8sqq24x")


def write(path: Path, *arrays: NDArray[Any]) -> None:
    """Write 1-D or 2-D arrays to a file, replacing it atomically and durably. Creates the folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = atomic.temp_path(path)
    with open(partial, "wb") as stream:
        for number, array in enumerate(arrays):
            stream.write(bytes(-stream.tell() % _HEADER.size))
            rows, columns = (*array.shape, -1)[:2]
            stream.write(_HEADER.pack(_MAGIC, len(arrays) - number, array.dtype.str.encode(), rows, columns))
            stream.write(np.ascontiguousarray(array).data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    atomic.sync_folder(path.parent)


def read(path: Path) -> list[NDArray[Any]]:
    """Return the arrays of a file, read-only and memory-mapped.

    Raises:
        RequestError: the file is missing or damaged.
    """
    try:
        with open(path, "rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        arrays = []
        at, left = 0, 1
        while left:
            magic, left, dtype, rows, columns = _HEADER.unpack_from(content, at)
            if magic != _MAGIC:
                raise ValueError("an array does not begin where it should")
            left -= 1
            at += _HEADER.size
            # numpy raises TypeError if the buffer is too short for the shape.
            shape = (rows,) if columns < 0 else (rows, columns)
            array: NDArray[Any] = np.ndarray(shape, dtype.rstrip(b"\0").decode(), content, at)
            at += array.nbytes + -array.nbytes % _HEADER.size
            arrays.append(array)
    except FileNotFoundError:
        raise RequestError(f"{path}: missing; start the stage again") from None
    except (ValueError, TypeError, OSError, struct.error) as error:
        raise RequestError(f"{path}: damaged ({error}); remove it and start the stage again") from None
    return arrays


def part_path(folder: Path, kind: str, part: int) -> Path:
    """Return the path of the file that holds a part's keys (or signatures)."""
    return folder / kind / f"{part:06d}{SUFFIX}"


def parts(folder: Path, kind: str) -> list[int]:
    """Return the numbers of the parts that have keys of this kind, in ascending order."""
    if not (folder / kind).is_dir():
        return []
    names = os.listdir(folder / kind)
    return sorted(int(name[: -len(SUFFIX)]) for name in names if name.endswith(SUFFIX) and not name.startswith("."))
