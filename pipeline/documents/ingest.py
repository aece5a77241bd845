"""First step of the documents stage: every part of every source read and cleaned, to files of its own.

Under the stage's scratch folder a part leaves ``NNNNNN.parquet`` (what was kept), ``NNNNNN.rejected.parquet`` (what was
dropped, with the reason), its keys for the search for duplicates (see ``pipeline/dedup``), and at last ``NNNNNN.json``
(its counts): a part that has counts is finished. ``parts.json`` says how many there are.
"""

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute as compute
from numpy.typing import NDArray

from artefacts import atomic, command_hints
from artefacts.errors import RequestError
from artefacts.progress import bar
from configs.schema import Recipe
from configs.schema.clean import CleanSection
from pipeline import parallel as processes
from pipeline.cleaning.cleaner import Cleaner
from pipeline.dedup import KeyWriter
from pipeline.document import Document, id_prefix
from pipeline.documents.row_files import GROUP_BYTES, KEPT_SCHEMA, OWN_COLUMNS, REJECTED_SCHEMA, RowFile
from pipeline.parallel import Share
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import Part, Source

_SURROGATES = re.compile("[\ud800-\udfff]")


def kept_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.parquet"


def rejected_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.rejected.parquet"


def counts_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def ingest(recipe: Recipe, sources: dict[str, Source], folder: Path, share: Share) -> None:
    """Read and clean the share's parts; those that an earlier start finished are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    if _all_finished(folder):
        # To look for parts in a solid archive is to read through it.
        return
    # What a rule lacks is said here, where it is one line, not in a worker.
    prepare(recipe.data.clean, warn=True)
    say_remarks(sources)
    workers = processes.count(recipe.data.workers)
    sizes = [source.size(workers) for source in sources.values()]
    total = None if None in sizes else sum(size for size in sizes if size)
    seen = 0

    with bar(total, "B", "documents") as progress:

        def tasks() -> Iterator[tuple[Any, ...]]:
            nonlocal seen
            for name, source in sources.items():
                for part in source.parts(workers):
                    number, seen = seen, seen + 1
                    if share.owns(number) and not counts_path(folder, number).exists():
                        yield name, source, part, number, folder, recipe.data.clean, id_prefix(recipe, name)
                    else:
                        progress.update(part.size)

        documents = 0
        for size, count in processes.ordered(clean_part, tasks(), workers, prepare, (recipe.data.clean,), _carried):
            documents += count
            progress.set_postfix_str(f"{documents:,} documents", refresh=False)
            progress.update(size)
    atomic.write_json(folder / "parts.json", {"parts": seen})


def _carried(task: tuple[Any, ...]) -> int:
    """Bytes that a task of ``clean_part`` carries."""
    part: Part = task[2]
    return part.carried


def say_remarks(sources: dict[str, Source]) -> None:
    """Print what the user should know of the sources before they are read."""
    for source in sources.values():
        if source.remark:
            print(source.remark, file=sys.stderr)


def _all_finished(folder: Path) -> bool:
    if not (folder / "parts.json").exists():
        return False
    return all(
        counts_path(folder, number).exists() for number in range(atomic.read_json(folder / "parts.json")["parts"])
    )


def finished_parts(folder: Path) -> list[dict[str, Any]]:
    """Counts of every part, in order.

    Raises:
        RequestError: not every part is finished.
    """
    command = command_hints.python("pipeline ingest")
    if not (folder / "parts.json").exists():
        raise RequestError(f"the source is not read yet: run `{command}` (every task of it) first")
    count = atomic.read_json(folder / "parts.json")["parts"]
    if missing := [number for number in range(count) if not counts_path(folder, number).exists()]:
        raise RequestError(
            f"{len(missing)} of {count} parts of the source are not read yet (the first is {missing[0]}): "
            f"run `{command}`, or the tasks of it that failed"
        )
    return [atomic.read_json(counts_path(folder, number)) for number in range(count)]


def clean_part(
    dataset: str,
    source: Source,
    part: Part,
    number: int,
    folder: Path,
    section: CleanSection,
    prefix: str,
    limit: int | None = None,
) -> tuple[int, int]:
    """Read and clean one part into ``folder``, at most ``limit`` documents of it; ids get the prefix.

    Returns:
        Bytes of the part, and documents read.
    """
    bad = BadInputs()
    counts: dict[str, Any] = {"dataset": dataset, "read": 0, "read_bytes": 0, "kept": 0, "kept_bytes": 0}
    dropped: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    keys = KeyWriter(folder, number, section)
    with (
        RowFile(kept_path(folder, number), KEPT_SCHEMA, "lz4") as kept,
        RowFile(rejected_path(folder, number), REJECTED_SCHEMA, "lz4") as rejected,
    ):
        for documents in _batches(islice(source.read(part, bad), limit)):
            table = _table(documents, prefix)
            cleaned = _cleaner[0](table["text"].chunk(0))
            masked.update(cleaned.masked)
            counts["read"] += len(table)
            counts["read_bytes"] += _text_bytes(table["text"])
            table = table.set_column(1, "text", cleaned.texts)
            if table["target"].null_count < len(table):
                targets = _cleaner[0].targets(table["target"].chunk(0))
                masked.update(targets.masked)
                table = table.set_column(OWN_COLUMNS.index("target"), "target", targets.texts)
            fine = compute.is_null(cleaned.reasons)
            refused = table.append_column("reason", cleaned.reasons).filter(compute.invert(fine))
            dropped.update(refused["reason"].to_pylist())
            rejected.write(refused.cast(REJECTED_SCHEMA))
            table = with_digests(table.filter(fine))
            counts["kept"] += len(table)
            counts["kept_bytes"] += int(np.sum(table["bytes"].to_numpy()))
            keys.add(table["text"].combine_chunks(), table["digest"])
            kept.write(table)
    keys.finish()
    atomic.write_json(
        counts_path(folder, number), {**counts, "dropped": dict(dropped), "masked": dict(masked), "bad": bad.dump()}
    )
    return part.size, counts["read"]


def prepare(section: CleanSection, warn: bool = False) -> None:
    """Give this process its cleaner for ``clean_part``; ``warn``: say what its rules cannot do.

    Raises:
        RequestError: a rule needs what is not there (a package, evaluation texts).
    """
    _cleaner[:] = [Cleaner(section)]
    if warn:
        for line in _cleaner[0].warnings:
            print(line, file=sys.stderr)


#: The cleaner of this process; see ``prepare``.
_cleaner: list[Cleaner] = []


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of documents with about a row group's text in each."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text) + len(document.target or "")
        if size >= GROUP_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _table(documents: list[Document], prefix: str) -> pyarrow.Table:
    columns = dict(zip(Document._fields, zip(*documents, strict=True), strict=True))
    if prefix:
        columns["id"] = tuple(prefix + identifier for identifier in columns["id"])
    arrays = {name: _column(values, KEPT_SCHEMA.field(name).type) for name, values in columns.items()}
    return pyarrow.table(arrays)


def _column(values: tuple[str | None, ...], kind: pyarrow.DataType) -> pyarrow.Array:
    """An array of strings, without the surrogates that UTF-8 cannot hold."""
    try:
        return pyarrow.array(values, kind)
    except UnicodeEncodeError:
        return pyarrow.array([value and _SURROGATES.sub("", value) for value in values], kind)


def _text_bytes(texts: pyarrow.ChunkedArray) -> int:
    return int(compute.sum(compute.binary_length(texts)).as_py() or 0)


def with_digests(table: pyarrow.Table) -> pyarrow.Table:
    """The documents with the size and the digest of their texts, in the columns of ``KEPT_SCHEMA``.

    A document with a target has half of its text's and half of one of both: the same text with another target is
    another document, and falls to the same side (``pipeline/tokens/held_out.py``).
    """
    texts = table["text"].combine_chunks()
    sizes = compute.binary_length(texts).cast(pyarrow.int64())
    digests = b"".join(digest[:16] for digest in _digests(texts, table["target"].combine_chunks()))
    packed = pyarrow.FixedSizeBinaryArray.from_buffers(
        pyarrow.binary(16), len(texts), [None, pyarrow.py_buffer(digests)]
    )
    table = table.select(OWN_COLUMNS)
    return table.append_column("bytes", sizes).append_column("digest", packed).cast(KEPT_SCHEMA)


def _digests(texts: pyarrow.LargeStringArray, targets: pyarrow.LargeStringArray) -> Iterator[bytes]:
    """The sha256 of each text; where it has a target, eight bytes of that, then of its sha256 and the target's."""
    found = (hashlib.sha256(text).digest() for text in _views(texts))
    if targets.null_count == len(targets):
        yield from found
        return
    others = zip(_views(compute.fill_null(targets, "")), targets.is_valid().to_pylist(), strict=True)
    for digest, (target, there) in zip(found, others, strict=True):
        # Blanks around a target are no part of it (``pipeline/examples/supervised_blocks.py``).
        both = digest + hashlib.sha256(bytes(target).strip()).digest()
        yield digest[:8] + hashlib.sha256(both).digest()[:8] if there else digest


def _views(texts: pyarrow.LargeStringArray) -> Iterator[memoryview]:
    """The UTF-8 bytes of each text, without a copy."""
    _, places, data = texts.buffers()
    if not len(texts):
        return
    offsets: NDArray[np.int64] = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = memoryview(data) if data is not None else memoryview(b"")
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        yield content[start:stop]
