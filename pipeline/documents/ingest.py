"""First step of the documents stage: read and clean every part of every source.

For each part, these files are written to the parts folder:

- ``NNNNNN.parquet``: the documents that were kept.
- ``NNNNNN.rejected.parquet``: the documents that were dropped, with the reason.
- the keys for deduplication (see ``pipeline/dedup``).
- ``NNNNNN.json``: the counts. They are written last, so a part that has counts is finished.

``parts.json`` holds the number of parts.
"""

import hashlib
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
from pipeline import parallel
from pipeline.cleaning.cleaner import Cleaner
from pipeline.dedup import KeyWriter
from pipeline.document import Document, id_prefix
from pipeline.documents.row_files import GROUP_BYTES, KEPT_SCHEMA, REJECTED_SCHEMA, SOURCE_COLUMNS, RowFile
from pipeline.parallel import TaskShard
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import Part, Source


def kept_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.parquet"


def rejected_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.rejected.parquet"


def counts_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.json"


def read_parts(recipe: Recipe, sources: dict[str, Source], folder: Path, task_shard: TaskShard) -> None:
    """Read and clean a task's parts, skipping finished ones.

    Raises:
        RequestError: a cleaning rule needs a package or evaluation texts that are missing, or a source cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _all_finished(folder):
        # Listing the parts of a solid archive requires reading all of it.
        return
    # Report missing packages or evaluation texts here, once, instead of in every worker.
    prepare(recipe.data.clean, warn=True)
    print_warnings(sources)
    workers = parallel.count(recipe.data.workers)
    sizes = [source.size(workers) for source in sources.values()]
    total = None if None in sizes else sum(size for size in sizes if size)
    num_parts = 0

    with bar(total, "B", "documents") as progress:

        def tasks() -> Iterator[tuple[Any, ...]]:
            nonlocal num_parts
            for name, source in sources.items():
                for part in source.parts(workers):
                    number, num_parts = num_parts, num_parts + 1
                    if task_shard.owns(number) and not counts_path(folder, number).exists():
                        yield name, source, part, number, folder, recipe.data.clean, id_prefix(recipe, name)
                    else:
                        progress.update(part.size)

        documents = 0
        for size, count in parallel.ordered(clean_part, tasks(), workers, prepare, (recipe.data.clean,), _carried):
            documents += count
            progress.set_postfix_str(f"{documents:,} documents", refresh=False)
            progress.update(size)
    atomic.write_json(folder / "parts.json", {"parts": num_parts})


def _carried(task: tuple[Any, ...]) -> int:
    """Return the size in bytes of the content that a ``clean_part`` task carries."""
    part: Part = task[2]
    return part.carried


def print_warnings(sources: dict[str, Source]) -> None:
    """Print the sources' warnings to stderr."""
    for source in sources.values():
        if source.warning:
            print(source.warning, file=sys.stderr)


def _all_finished(folder: Path) -> bool:
    if not (folder / "parts.json").exists():
        return False
    return all(
        counts_path(folder, number).exists() for number in range(atomic.read_json(folder / "parts.json")["parts"])
    )


def part_counts(folder: Path) -> Iterator[dict[str, Any]]:
    """Return the counts of the parts that are finished so far, in order."""
    return (atomic.read_json(path) for path in sorted(folder.glob("[0-9]*.json")))


def finished_parts(folder: Path) -> list[dict[str, Any]]:
    """Return the counts of all parts, in order.

    Raises:
        RequestError: a part is not finished.
    """
    command = command_hints.python("pipeline ingest")
    if not (folder / "parts.json").exists():
        raise RequestError(f"the source has not been read yet: run `{command}` (all of its tasks) first")
    count = atomic.read_json(folder / "parts.json")["parts"]
    if missing := [number for number in range(count) if not counts_path(folder, number).exists()]:
        raise RequestError(
            f"{len(missing)} of {count} parts of the source have not been read yet (the first is {missing[0]}): "
            f"run `{command}`, or rerun the tasks that failed"
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
    """Read and clean one part.

    Args:
        dataset: name of the source.
        source: the source.
        part: the part to read.
        number: number of the part, counted across all sources.
        folder: folder for the part's files.
        section: the cleaning rules.
        prefix: prepended to every document id.
        limit: maximum number of documents to read.

    Returns:
        The part's size in bytes, and the number of documents read.
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
            counts["read"] += len(table)
            counts["read_bytes"] += _text_bytes(table["text"])
            table, failed = _cleaned(table, masked)
            dropped.update(failed["reason"].to_pylist())
            rejected.write(failed)
            counts["kept"] += len(table)
            counts["kept_bytes"] += int(np.sum(table["bytes"].to_numpy()))
            keys.add(table["text"].combine_chunks(), table["digest"])
            kept.write(table)
    keys.finish()
    atomic.write_json(
        counts_path(folder, number), {**counts, "dropped": dict(dropped), "masked": dict(masked), "bad": bad.dump()}
    )
    return part.size, counts["read"]


def _cleaned(table: pyarrow.Table, masked: Counter[str]) -> tuple[pyarrow.Table, pyarrow.Table]:
    """Return the kept and the dropped documents. Adds the number of replacements of each kind to ``masked``."""
    cleaned = _cleaner[0](table["text"].chunk(0))
    masked.update(cleaned.masked)
    table = table.set_column(1, "text", cleaned.texts)
    if table["target"].null_count < len(table):
        targets = _cleaner[0].targets(table["target"].chunk(0))
        masked.update(targets.masked)
        table = table.set_column(SOURCE_COLUMNS.index("target"), "target", targets.texts)
    passed = compute.is_null(cleaned.reasons)
    failed = table.append_column("reason", cleaned.reasons).filter(compute.invert(passed))
    return with_digests(table.filter(passed)), failed.cast(REJECTED_SCHEMA)


def prepare(section: CleanSection, warn: bool = False) -> None:
    """Create this process's cleaner for ``clean_part``. If ``warn`` is set, print the cleaner's warnings to stderr.

    Raises:
        RequestError: a rule needs a package or evaluation texts that are missing.
    """
    _cleaner[:] = [Cleaner(section)]
    if warn:
        for line in _cleaner[0].warnings:
            print(line, file=sys.stderr)


#: This process's cleaner, created by ``prepare``.
_cleaner: list[Cleaner] = []


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield lists of documents, each with about as much text as a row group."""
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
    """Convert strings to an array, and remove surrogates, which UTF-8 cannot encode."""
    try:
        return pyarrow.array(values, kind)
    except UnicodeEncodeError:
        return pyarrow.array([value and value.encode("utf-8", "ignore").decode() for value in values], kind)


def _text_bytes(texts: pyarrow.ChunkedArray) -> int:
    return int(compute.sum(compute.binary_length(texts)).as_py() or 0)


def with_digests(table: pyarrow.Table) -> pyarrow.Table:
    """Convert documents to ``KEPT_SCHEMA`` by adding the size and digest of each text.

    If a document has a target, the first half of its digest comes from the text, and the second half from the text and
    the target. As a result, documents with the same text and different targets are not duplicates. They still end up on
    the same side of the split into training and validation (``pipeline/tokens/held_out.py``).
    """
    texts = table["text"].combine_chunks()
    sizes = compute.binary_length(texts).cast(pyarrow.int64())
    digests = b"".join(digest[:16] for digest in _digests(texts, table["target"].combine_chunks()))
    packed = pyarrow.FixedSizeBinaryArray.from_buffers(
        pyarrow.binary(16), len(texts), [None, pyarrow.py_buffer(digests)]
    )
    table = table.select(SOURCE_COLUMNS)
    return table.append_column("bytes", sizes).append_column("digest", packed).cast(KEPT_SCHEMA)


def _digests(texts: pyarrow.LargeStringArray, targets: pyarrow.LargeStringArray) -> Iterator[bytes]:
    """Yield each text's SHA-256.

    For a text with a target, yield the first 8 bytes of that hash and 8 bytes of a SHA-256 over text and target.
    """
    text_digests = (hashlib.sha256(text).digest() for text in _views(texts))
    if targets.null_count == len(targets):
        yield from text_digests
        return
    pairs = zip(_views(compute.fill_null(targets, "")), targets.is_valid().to_pylist(), strict=True)
    for digest, (target, has_target) in zip(text_digests, pairs, strict=True):
        # Whitespace around a target doesn't count (it is stripped in ``pipeline/examples/supervised_blocks.py``).
        both = digest + hashlib.sha256(bytes(target).strip()).digest()
        yield digest[:8] + hashlib.sha256(both).digest()[:8] if has_target else digest


def _views(texts: pyarrow.LargeStringArray) -> Iterator[memoryview]:
    """Yield the UTF-8 bytes of each text, without copying."""
    _, places, data = texts.buffers()
    if not len(texts):
        return
    offsets: NDArray[np.int64] = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = memoryview(data) if data is not None else memoryview(b"")
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        yield content[start:stop]
