"""Stream a dataset repository from the Hugging Face Hub, or a local folder with the same layout.

A part is one data file. If the stream breaks, it is reopened, and the rows that were already read are skipped. If the
last row that was read has changed, an error is raised.
"""

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from artefacts.errors import RequestError, UnreachableError, spelled
from pipeline.document import Document
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import KEY, Part
from pipeline.sources.parquet import check_column, column_of, records_of, texts_of
from pipeline.sources.storage import files
from pipeline.sources.storage.files import File
from pipeline.sources.storage.retry import FIRST_ATTEMPTS, in_one_line, retry

#: Number of rows to hold at a time. It is small, because row lengths are unknown before reading. The library itself
#: holds more: a row group's column for Parquet, or a block for other formats.
_BATCH_ROWS = 64
_COMMIT = re.compile("[0-9a-f]{40}")
_PIN = "with revision=COMMIT, finished documents need no network"


@dataclass(frozen=True)
class HubSource:
    """The rows of one split of a dataset repository.

    Attributes:
        repository: name on the Hub (``Skylion007/openwebtext``), or a local folder.
        text_field: the text column. ``meta.body`` means the field ``body`` of the column ``meta``, unless there is a
            column named ``meta.body``. None if complete records are read.
        split: the split.
        config: the dataset configuration, or None for the default.
        revision: branch, tag or commit, or None for the newest.
        key: the source's recipe key, for messages.
    """

    repository: str
    text_field: str | None
    split: str = "train"
    config: str | None = None
    revision: str | None = None
    key: str = field(default=KEY, kw_only=True)

    @property
    def name(self) -> str:
        return self.repository

    @property
    def warning(self) -> None:
        """No warning."""

    @property
    def partition_scheme(self) -> str:
        return "data files"

    @cached_property
    def _folder(self) -> Path | None:
        """The local folder, or None if the repository is on the Hub."""
        folder = Path(self.repository).expanduser()
        return folder if folder.is_dir() else None

    @cached_property
    def commit(self) -> str | None:
        """The commit that ``revision`` currently refers to, or None for a local folder."""
        if self._folder or (self.revision and _COMMIT.fullmatch(self.revision)):
            return None if self._folder else self.revision
        _refuse_offline(self.repository, self.key)
        from huggingface_hub import HfApi, errors

        missing = (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
        where = f"{self.key}.path: {self.repository}"
        try:
            info = retry(
                lambda: HfApi().repo_info(self.repository, repo_type="dataset", revision=self.revision),
                f"{where} on the Hugging Face hub ({_PIN})",
                missing,
                FIRST_ATTEMPTS,
            )
        except missing as error:
            raise RequestError(
                f"{where} (revision {self.revision or 'newest'}) is neither a folder nor a dataset of the Hugging Face "
                f"hub that you can access: {in_one_line(error)}"
            ) from None
        return str(info.sha)

    def inputs(self) -> dict[str, str | dict[str, File]]:
        """Return the commit, or the files of a local folder. Set ``revision`` to pin the commit."""
        if self._folder:
            return {"files": files.find(str(self._folder), ("",), f"{self.key}.path")}
        return {"commit": str(self.commit)}

    def details(self) -> dict[str, Any]:
        return {"repository": self.repository if not self._folder else None, "revision": self.commit}

    def size(self, workers: int) -> int | None:
        sizes = [size for _, size in self._data_files]
        return sum(size for size in sizes if size) if all(sizes) else None

    @cached_property
    def _data_files(self) -> list[tuple[str, int | None]]:
        """(name within the repository, bytes if known) for each data file, in the order of the stream's shards."""
        import fsspec

        dataset = self._stream()
        listed = _builder(*self._dataset_id, self.key).config.data_files or {}
        urls = [str(url) for url in listed.get(self.split, [])]
        if len(urls) != dataset.num_shards:
            return [(f"shard-{number:05d}", None) for number in range(dataset.num_shards)]
        data_files: list[tuple[str, int | None]] = []
        for url in urls:
            name = url.rpartition("@")[2].partition("/")[2]
            if self._folder:
                name = Path(url).resolve().relative_to(self._folder.resolve()).as_posix()
            system, path = fsspec.core.url_to_fs(url)
            data_files.append((spelled(name), int(system.info(path)["size"] or 0)))
        return data_files

    def parts(self, workers: int) -> Iterator[Part]:
        """Yield every part, as (shard number, number of shards, name of the data file)."""
        data_files = self._data_files
        for number, (name, size) in enumerate(data_files):
            yield Part(size or 0, (number, len(data_files), name))

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        row = 0
        name = part.where[2]
        for column in self._tables(part, bad):
            for text in texts_of(column, name, row, bad):
                if text is not None:
                    yield Document(f"hub:{name}:{row}", text, name, "record")
                row += 1

    def records(self, part: Part, bad: BadInputs) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and content of each row of a part, if ``text_field`` is None.

        Rows that cannot be read are counted in ``bad``.
        """
        row = 0
        for table in self._tables(part, bad):
            for record in records_of(table, part.where[2], row, bad):
                if record is not None:
                    yield row, record
                row += 1

    def _tables(self, part: Part, bad: BadInputs) -> Iterator[Any]:
        """Yield a part's text column or, if ``text_field`` is None, its rows, in pieces."""
        number, shards, name = part.where
        dataset = self._stream()
        if dataset.num_shards != shards:
            raise RequestError(
                f"{self.key}.path: {self.repository} has {dataset.num_shards} data files, but had {shards} before: "
                "it changed while it was read; start again"
            )
        shard = dataset.shard(num_shards=shards, index=number)
        # If the sizes are unknown, all data files count equally.
        size = part.size or 1
        bad.bytes += size
        yield from _Columns(self, shard, name, size, bad)

    @property
    def _dataset_id(self) -> tuple[str, str | None, str | None]:
        return str(self._folder) if self._folder else self.repository, self.config, self.commit

    def _stream(self) -> Any:
        """Open the split as a ``datasets.IterableDataset``, with only the text column if possible."""
        if not self._folder:
            _refuse_offline(self.repository, self.key)
        return _load(*self._dataset_id, self.split, self.text_field, self.key)

    def __getstate__(self) -> dict[str, Any]:
        """Include the commit, so that every process reads the same commit, and leave out the list of files."""
        kept = {key: value for key, value in self.__dict__.items() if key != "_data_files"}
        return {**kept, "commit": self.commit}


def _refuse_offline(repository: str, key: str) -> None:
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise UnreachableError(
            f"{key}.path: {repository} is on the Hugging Face hub, but HF_HUB_OFFLINE is set: unset it, or use a local "
            f"copy of the repository ({_PIN})"
        )


class _Columns:
    """Iterates over a shard's text as Arrow columns, or over its rows as Arrow tables, in order.

    Resumes after broken connections.
    """

    def __init__(self, source: HubSource, shard: Any, name: str, size: int, bad: BadInputs) -> None:
        self._shard = shard
        self._field = source.text_field
        self._key = source.key
        self._where = f"{source.repository}: {name}"
        self._size = size
        self._bad = bad
        self._stream: Iterator[Any] | None = None
        self._taken = 0
        self._last: bytes | None = None
        self._damaged = False

    def __iter__(self) -> Iterator[Any]:
        while (column := retry(self._next, self._where)) is not None:
            yield column

    def _next(self) -> Any:
        """Return the next column, or None at the end. A broken stream is reopened at the same position."""
        try:
            if self._stream is None:
                self._stream = self._from_the_start()
            column = next(self._stream, None)
        except Exception as error:
            self._stream = None
            damaged_before, self._damaged = self._damaged, _is_damage(error) or self._damaged
            # An interrupted transfer looks the same, so try once more.
            if not (_is_damage(error) and damaged_before):
                raise
            # The number of lost rows is unknown, so the complete file counts as lost.
            self._bad.add("unreadable file", f"{self._where}: row {self._taken}: {_one_line(error)}", self._size)
            return None
        self._damaged = False
        return column

    def _from_the_start(self) -> Iterator[Any]:
        at = 0
        for table in self._shard.with_format("arrow").iter(_BATCH_ROWS):
            if not at and self._field is not None:
                check_column(table.schema, self._field, self._where, self._key)
            start, at = at, at + len(table)
            column = (table if self._field is None else column_of(table, self._field)).combine_chunks()
            if at < self._taken:
                continue
            if self._taken and start < self._taken <= at:
                if _digest(column, self._taken - 1 - start) != self._last:
                    raise RequestError(
                        f"{self._where}: row {self._taken - 1} changed after reconnecting: "
                        "the repository changed while it was read; start again"
                    )
                column = column.slice(self._taken - start)
            if len(column):
                self._taken = at
                self._last = _digest(column, len(column) - 1)
                yield column
        if at < self._taken:
            raise ConnectionError(f"the stream ends at row {at}, although {self._taken} rows were read before")


def _digest(column: Any, row: int) -> bytes:
    """Return a SHA-256 digest of the value in a row."""
    import pyarrow

    value = column.slice(row, 1)
    if hasattr(value, "schema"):
        # A table. Its values may be nested, and need not be valid UTF-8.
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, value.schema) as stream:
            stream.write_table(value)
        return hashlib.sha256(sink.getvalue()).digest()
    return hashlib.sha256(repr(value.cast("binary").to_pylist()).encode()).digest()


def _is_damage(error: Exception) -> bool:
    """Return whether the exception means damaged data rather than a network error.

    For damaged data, Arrow raises a plain OSError or an exception of its own.
    """
    import pyarrow

    return isinstance(error, pyarrow.ArrowException) or type(error) is OSError


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


#: Loading errors that a retry would not fix: no such configuration, split or file, or a dataset with a loading script.
_FINAL = (ValueError, FileNotFoundError, RuntimeError)


@functools.lru_cache(maxsize=4)
def _builder(path: str, config: str | None, commit: str | None, key: str) -> Any:
    import datasets

    # The library itself retries each request.
    where = f"{key}.path: {path}"
    return retry(lambda: datasets.load_dataset_builder(path, config, revision=commit), where, _FINAL, 2)


@functools.lru_cache(maxsize=4)
def _load(path: str, config: str | None, commit: str | None, split: str, field: str | None, key: str) -> Any:
    """Load the split. The result is cached, so that a process queries the Hub once rather than for each part."""
    import datasets
    import pyarrow

    def load(**more: Any) -> Any:
        return datasets.load_dataset(path, config, split=split, revision=commit, streaming=True, **more)

    final = (*_FINAL, pyarrow.ArrowException)
    where = f"{key}.path: {path}"
    # Parquet can be read by column and in batches of rows. Other formats don't have these options.
    by_rows = {"batch_size": _BATCH_ROWS}
    try:
        try:
            dataset = retry(lambda: load(**by_rows), where, final, 2)
        except ValueError:
            by_rows = {}
            dataset = retry(load, where, final, 2)
        columns = dataset.column_names
        if field is None or columns is None or columns == [field]:
            return dataset
        column = field if field in columns else field.partition(".")[0]
        check_column(dataset.features.arrow_schema, field, path, f"{key}.text_field")
        try:
            return load(columns=[column], **by_rows)
        except ValueError:
            return dataset.select_columns([column])
    except final as error:
        raise RequestError(f"{where}: {_one_line(error) or type(error).__name__}") from None
