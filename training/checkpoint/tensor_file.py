"""Writes tensors to a safetensors file: a rank's shard of a checkpoint, or the weights of a model directory.

The safetensors library holds the GIL while it writes, and ignores the umask. This writer can run in a thread during
training, and computes the size and sha256 in the same pass over memory.
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
#: Number of bytes written and hashed at a time.
_CHUNK = 2**24
#: The first tensor starts at a multiple of this many bytes, as in files written by the library.
_ALIGNMENT = 8


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write contiguous CPU tensors to a file and fsync it. Returns the file's manifest entry.

    Raises:
        OSError: the disk is full, or the folder is missing or not writable.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # Wider dtypes come first, which keeps every tensor aligned.
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
        for content in (head, *(_bytes(tensor) for _, tensor in ordered)):
            for start in range(0, len(content), _CHUNK):
                chunk = content[start : start + _CHUNK]
                digest.update(chunk)
                while len(chunk):
                    chunk = chunk[stream.write(chunk) :]
        os.fsync(stream.fileno())
        size = stream.tell()
    return {"bytes": size, "sha256": digest.hexdigest()}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata that was written with the tensors."""
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        metadata: dict[str, str] = json.loads(stream.read(length))["__metadata__"]
    return metadata


def _bytes(tensor: torch.Tensor) -> memoryview:
    # An empty tensor's strides may not allow a view of its bytes.
    if not tensor.numel():
        return memoryview(b"")
    return tensor.reshape(-1).view(torch.uint8).numpy().data
