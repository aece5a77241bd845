"""Tensors in one file of the safetensors format, which any tool of that name reads: of a rank, or of a model directory.

Written here and not by the library, because sizes, sha256 and fsync come in the same pass over the memory, in a thread
that lets the training go on: the library holds the interpreter's lock while it writes. Its files also ignore the umask.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.int64: "I64"}
_DTYPES |= {torch.float64: "F64", torch.int32: "I32", torch.bool: "BOOL"}
#: Bytes written and hashed at a time.
_PIECE = 2**24
#: The first tensor begins at a multiple of it, as the library's do.
_ALIGNMENT = 8


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write contiguous CPU tensors, safely on disk when it returns; returns the file's entry for a manifest.

    Raises:
        OSError: the disk is full, or the folder is not there or cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # Wide numbers first, as the format asks of aligned readers.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as stream:
        head = memoryview(len(text).to_bytes(8, "little") + text)
        for whole in (head, *(_bytes(tensor) for _, tensor in ordered)):
            for start in range(0, len(whole), _PIECE):
                piece = whole[start : start + _PIECE]
                digest.update(piece)
                while len(piece):
                    piece = piece[stream.write(piece) :]
        os.fsync(stream.fileno())
        size = stream.tell()
    return {"bytes": size, "sha256": digest.hexdigest()}


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that were written beside the tensors."""
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        found: dict[str, str] = json.loads(stream.read(length))["__metadata__"]
    return found


def _bytes(tensor: torch.Tensor) -> memoryview:
    # An empty share may have strides that no view of its bytes can have.
    if not tensor.numel():
        return memoryview(b"")
    return tensor.reshape(-1).view(torch.uint8).numpy().data
