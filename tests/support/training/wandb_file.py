"""Reads the file that wandb writes in offline mode: a log of LevelDB's format, whose records are wandb's protobufs."""

import json
import struct
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

#: The file begins with ``:W&B``, a magic number and a version.
_HEADER = 7
_BLOCK = 32768
#: A chunk begins with a checksum, its length and its type: complete record, first, middle or last part.
_CHUNK = struct.Struct("<IHB")
_COMPLETE, _LAST = 1, 4


def read_wandb(path: Path) -> list[Record]:
    """All records of a ``.wandb`` file."""
    content = path.read_bytes()
    assert content.startswith(b":W&B"), path
    records, parts, place = [], b"", _HEADER
    while place + _CHUNK.size <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _CHUNK.size:
            place += left
            continue
        _, length, kind = _CHUNK.unpack_from(content, place)
        place += _CHUNK.size
        parts += content[place : place + length]
        place += length
        if kind in (_COMPLETE, _LAST):
            records.append(Record.FromString(parts))
            parts = b""
    return records


def history(records: list[Record]) -> list[dict[str, Any]]:
    """The rows that were logged, without wandb's own keys."""
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows
