"""Read records for chat examples from JSON Lines, JSON, CSV and Parquet files, or from a dataset repository.

Files can be compressed and remote, as for documents. Records that cannot be read are counted.
"""

import json
from collections.abc import Collection, Iterator
from functools import partial
from typing import IO, Any, NamedTuple

import orjson

from artefacts.errors import RequestError
from artefacts.pages.formats import compact
from configs.schema.examples import ExamplesSection
from pipeline.sources import signatures
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import MOST_BYTES
from pipeline.sources.storage import files
from pipeline.sources.storage.digests import SourceDigests
from pipeline.sources.storage.files import File

#: Recipe key of the examples, for reasons that are recorded. With several stages, messages have the stage's key.
KEY = "finetune.examples"

_PARQUET = (".parquet", ".pq")
_CSV = (".csv", ".tsv")
_ENDINGS = (".jsonl", ".ndjson", ".json", *_CSV, *_PARQUET)

#: The supported kinds of files, for messages.
FILES = "use JSON Lines (.jsonl, .ndjson), a JSON array (.json), CSV (.csv, .tsv) or Parquet (.parquet)"
#: Prefix of a reason -> what to do about such inputs. ``{key}`` is the recipe key of the examples.
HINTS = {
    **signatures.HINTS,
    "the file is parquet": "rename these files so that their names end in .parquet",
    "unreadable file": "download these files of {key}.path again, or repair or remove them",
    "invalid UTF-8": "save the files of {key}.path as UTF-8",
    "malformed ": f"check {{key}}.path: {FILES}",
    "not a JSON object": f"check {{key}}.path: {FILES}",
    "a record with too ": "quote the fields that contain the delimiter",
}

#: Maximum rows of a Parquet file to hold at a time.
_BATCH_ROWS = 256
_BUFFER_BYTES = 8 << 20


class Record(NamedTuple):
    """A record: where it is, for messages, and its content, which is normally a dictionary."""

    where: str
    value: Any


class RecordFile(NamedTuple):
    """A file or data file of a repository, with the records in it."""

    name: str
    records: Iterator[Record]


def inputs(section: ExamplesSection, digests: SourceDigests, key: str = KEY) -> dict[str, str]:
    """Return the fingerprint of the files in ``path``, or the commit of a repository. ``key`` is the section's key.

    Raises:
        RequestError: there are no files, or no such repository.
    """
    if section.kind == "files":
        return {"files": digests.of("files", _listed(section, key))}
    return {
        name: value if isinstance(value, str) else digests.of(name, value)
        for name, value in _repository(section, key).inputs().items()
    }


def record_files(section: ExamplesSection, wanted: Collection[str], bad: BadInputs, key: str) -> Iterator[RecordFile]:
    """Yield each file with its records, in order. Records that cannot be read are counted in ``bad``.

    In Parquet files, only the ``wanted`` columns are read. The values of other columns are None. ``key`` is the
    section's key.
    """
    if section.kind == "hub":
        source = _repository(section, key)
        for part in source.parts(1):
            name = part.where[2]
            rows = source.records(part, bad)
            yield RecordFile(name, (Record(f"{name} row {row}", record) for row, record in rows))
        return
    for name, file in _listed(section, key).items():
        bad.bytes += file.size
        plain = files.plain_name(name)
        if plain.endswith(_PARQUET):
            records = _parquet_records(file, wanted, bad)
        else:
            read = partial(_csv_records, file, bad, key) if plain.endswith(_CSV) else partial(_json_records, file, bad)
            records = files.guarded(file, read, bad)
        yield RecordFile(name, records)


def _listed(section: ExamplesSection, key: str) -> dict[str, File]:
    return files.find(str(section.path), _ENDINGS, f"{key}.path")


def _repository(section: ExamplesSection, key: str) -> Any:
    from pipeline.sources.hub import HubSource

    return HubSource(str(section.path), None, section.split, section.config, section.revision, key=key)


def _json_records(file: File, bad: BadInputs, stream: IO[bytes]) -> Iterator[Record]:
    """Yield the records of a JSON array or of JSON lines, depending on the first character."""
    head = signatures.peek(stream)
    if fault := signatures.other_kind(head):
        bad.add(fault, file.name, file.size)
    elif signatures.is_json_array(head):
        yield from _array_records(file, bad, stream)
    else:
        yield from _line_records(file, bad, stream)


def _array_records(file: File, bad: BadInputs, stream: IO[bytes]) -> Iterator[Record]:
    try:
        records = json.loads(stream.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        bad.add("invalid UTF-8", f"{file.name}: byte {error.start}", file.size)
    except (ValueError, RecursionError) as error:
        bad.add("malformed JSON array", f"{file.name}: {error}", file.size)
    else:
        yield from (Record(f"{file.name} record {number}", record) for number, record in enumerate(records, 1))


def _line_records(file: File, bad: BadInputs, stream: IO[bytes]) -> Iterator[Record]:
    number = 0
    while line := stream.readline(MOST_BYTES):
        number += 1
        where = f"{file.name} line {number}"
        if len(line) == MOST_BYTES:
            bad.add(f"a line longer than {compact(MOST_BYTES, 'B')}", where, file.size)
            return
        if not line.strip():
            continue
        try:
            yield Record(where, orjson.loads(line))
        except orjson.JSONDecodeError:
            # Rare: a malformed line, or one that only the standard library accepts.
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield Record(where, json.loads(text))
            except UnicodeDecodeError:
                bad.add("invalid UTF-8", where)
            except (ValueError, RecursionError):
                bad.add("malformed line", where)


def _csv_records(file: File, bad: BadInputs, key: str, stream: IO[bytes]) -> Iterator[Record]:
    from pipeline.sources.csv import open_records, other_delimiter, well_formed

    if fault := signatures.other_kind(signatures.peek(stream)):
        bad.add(fault, file.name, file.size)
        return
    rows = open_records(stream, file)
    header = next(rows, None)
    if header is None:
        return
    if mark := other_delimiter(header):
        raise RequestError(
            f"{key}.path: {file.name} has a single column, {header[0]!r}: is {mark!r} its delimiter? Separate the "
            "columns of .csv files by commas and those of .tsv files by tabs"
        )
    for number, fields in well_formed(rows, file, bad):
        where = f"{file.name} record {number}"
        if not fields:
            continue
        if len(fields) != len(header):
            what = "few" if len(fields) < len(header) else "many"
            bad.add(f"a record with too {what} fields", f"{where}: {len(fields)} under a header of {len(header)}")
            continue
        try:
            "".join(fields).encode()
        except UnicodeEncodeError:
            bad.add("invalid UTF-8", where)
            continue
        yield Record(where, dict(zip(header, fields, strict=True)))


def _parquet_records(file: File, wanted: Collection[str], bad: BadInputs) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet as parquet

    from pipeline.sources.parquet import records_of

    row = 0
    try:
        with file.open() as stream:
            opened = parquet.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            names = opened.schema_arrow.names
            # Without columns, there would be no rows to name in a message.
            columns = [name for name in names if name in wanted] or names[:1]
            others = dict.fromkeys(name for name in names if name not in columns)
            for batch in opened.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False):
                for number, record in enumerate(records_of(batch, file.name, row, bad), row):
                    if record is not None:
                        yield Record(f"{file.name} row {number}", {**record, **others})
                row += len(batch)
    except (pyarrow.ArrowException, *files.DAMAGE) as error:
        bad.add("unreadable file", f"{file.name}: {' '.join(str(error).split())}", file.size)
