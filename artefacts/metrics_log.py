"""Reader and writer of ``metrics.jsonl``, one record per line. Readers tolerate repeated steps and torn lines."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artefacts.errors import RequestError

NAME = "metrics.jsonl"
#: The file next to it with the completions of ``train.samples``, in the same format. Their kind is ``sample``.
SAMPLES = "samples.jsonl"
#: Kind (``train``, ``validation``) -> its records, sorted by step.
Metrics = dict[str, list[dict[str, Any]]]

#: The start of every record, because the writer puts ``kind`` first.
_RECORD_START = '{"kind"'


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every record of a metrics file, including repeated steps. Yields nothing if there is no file.

    If a run was killed while writing a line, that record is skipped. If the resumed run appended a record to the same
    line, that record is still read.

    Raises:
        RequestError: the file has several lines, but no line contains a record.
    """
    if not path.is_file():
        return
    records, damaged = 0, 0
    with open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            record = _record(line)
            if record is not None:
                records += 1
                yield record
            elif line.strip():
                damaged += 1
    if damaged > 1 and not records:
        raise RequestError(f"{path}: not a metrics file: {damaged} lines and no record; move it away and train again")


def read_metrics(path: Path) -> Metrics:
    """Return the records of a metrics file by kind, sorted by step. If a step was repeated, its last record wins.

    Raises:
        RequestError: the file has several lines, but no line contains a record.
    """
    last: dict[str, dict[int, dict[str, Any]]] = {}
    for record in read_records(path):
        last.setdefault(record["kind"], {})[record["step"]] = record
    return {kind: [steps[step] for step in sorted(steps)] for kind, steps in last.items()}


def _record(line: str) -> dict[str, Any] | None:
    """Return the record in a line, or None if it has no record. A torn record may come before it in the line."""
    for text in (line, line[max(line.rfind(_RECORD_START), 0) :]):
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict) and isinstance(value.get("kind"), str) and isinstance(value.get("step"), int):
            return value
    return None


class LineWriter:
    """An append-only text file. Each line is appended with a single write."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the run
        # A killed run or a full disk may have torn the last line. If so, the next record starts on a new line.
        self._torn = False
        if size := path.stat().st_size:
            with open(path, "rb") as stream:
                stream.seek(size - 1)
                self._torn = stream.read() != b"\n"

    def add(self, line: bytes) -> None:
        content = b"\n" + line if self._torn else line
        if self._file.write(content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False

    def close(self) -> None:
        self._file.close()
