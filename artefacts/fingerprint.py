"""Fingerprints: SHA-256 hashes of files and of JSON values."""

import hashlib
import json
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def of_value(value: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form (sorted keys, no spaces), in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
