"""Documentation of the installed Python: language topics, and the docstrings of all importable packages.

Every machine has this text, even without a network. It is parsed once per environment and cached.
"""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

from artefacts import fingerprint
from artefacts.errors import RequestError
from artefacts.progress import bar
from configs.schema import Recipe
from configs.schema.data import SourceSection
from pipeline import parallel
from pipeline.document import Document
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import KEY, Part
from pipeline.sources.storage.files import File

#: Version of the parser. It is part of the cache key.
_PARSER = 1
#: The document fields to cache. The target is not cached.
_CACHED = ("id", "text", "source", "kind")
#: Approximate size of the source files per task, in bytes.
_TASK_BYTES = 1 << 20
#: Approximate size of the text in a row group of the cache, in bytes. Each row group is one part.
_GROUP_BYTES = 4 << 20


@dataclass(frozen=True)
class PydocsSource:
    """Language topics, and all modules, classes and functions with a docstring.

    Unreadable inputs are counted by Python file.

    Attributes:
        cache: folder with the cache files of parsed environments.
        packages: top-level modules and packages to keep, or None for all. "topics" stands for the language topics.
        target_field: use a document's ``kind`` or ``package`` as its target, and remove the first line of its text,
            which reveals both. If None, documents have no target.
        key: the source's recipe key, for messages.
    """

    cache: Path
    packages: tuple[str, ...] | None = None
    target_field: Literal["kind", "package"] | None = None
    key: str = field(default=KEY, kw_only=True)

    @classmethod
    def of(cls, section: SourceSection, recipe: Recipe) -> "PydocsSource":
        """Create the source for a section of a recipe. All runs with the same ``run.root`` share the cache."""
        cache = Path(recipe.run.root) / ".cache" / "pydocs"
        target = cast(Literal["kind", "package"] | None, section.target_field)
        return cls(cache, section.packages, target, key=recipe.data.key_of(section))

    @property
    def name(self) -> str:
        return "pydocs"

    def inputs(self) -> dict[str, str | dict[str, File]]:
        """Return no inputs, because installing a package should not make a corpus stale."""
        return {}

    @cached_property
    def _environment(self) -> dict[str, Any]:
        installed = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
        return {
            "python": sys.version.split()[0],
            "implementation": sys.implementation.name,
            "packages": dict(sorted(installed.items())),
        }

    @property
    def path(self) -> Path:
        """The cache file for this environment."""
        key = {"environment": self._environment, "packages": self.packages, "parser": _PARSER}
        return self.cache / f"{fingerprint.of_value(key)[:32]}.parquet"

    @property
    def warning(self) -> None:
        """No warning."""

    @property
    def partition_scheme(self) -> str:
        return "row groups of the cache"

    def size(self, workers: int) -> int | None:
        """Return the size of the cached documents in bytes. Parses the environment if it is not cached."""
        return sum(part.size for part in self.parts(workers))

    def parts(self, workers: int) -> Iterator[Part]:
        """Return every part, as (cache file, row group). Parses the environment if its cache is missing or damaged."""
        import pyarrow.parquet as parquet

        if not _readable(self.path):
            self._parse(workers)
        metadata = parquet.read_metadata(self.path)
        sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        return (Part(size, (self.path.name, group)) for group, size in enumerate(sizes))

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        import pyarrow.parquet as parquet

        name, group = part.where
        file = parquet.ParquetFile(self.cache / name)
        if group == 0:
            bad.merge(_bad_inputs(file))
        for row in file.read_row_group(group).to_pylist():
            document = Document(**row)
            yield document if self.target_field is None else _labeled(document, self.target_field)

    def first(self, limit: int, folder: Path) -> "PydocsSource":
        """Return this source if it is cached. Otherwise, return a source with only the first documents.

        That source has at least ``limit`` documents, or all of them. They are parsed and cached in ``folder``.
        """
        if self.path.exists():
            return self
        source = replace(self, cache=folder)
        source._parse(1, limit)
        return source

    def documents(self, workers: int) -> Iterator[Document]:
        """Yield every document, in order."""
        bad = BadInputs()
        for part in self.parts(workers):
            yield from self.read(part, bad)

    def details(self) -> dict[str, Any]:
        return {"environment": self._environment}

    def _parse(self, workers: int, limit: float = math.inf) -> None:
        """Parse the environment and write the cache. Stop after the task that reaches ``limit`` documents."""
        from pipeline.sources.pydocs_parse import parse_files

        bad = BadInputs()
        tasks = list(_tasks(_source_files(self.packages)))
        if self.packages and not tasks and self.packages != ("topics",):
            raise RequestError(f"{self.key}.packages: no source files of {', '.join(self.packages)} are installed here")
        documents = list(_topics()) if self.packages is None or "topics" in self.packages else []
        bad.good += len(documents) > 0
        with bar(sum(len(task) for task in tasks), "file", "parsing docstrings") as progress:
            parsed = parallel.ordered(parse_files, [(task,) for task in tasks], min(workers, len(tasks) or 1))
            for task, (parsed_documents, faults) in zip(tasks, parsed, strict=True):
                documents += parsed_documents
                bad.good += len(task) - len(faults)
                for path, fault in faults:
                    bad.add("unparsable file", f"{Path(path).name}: {fault}")
                progress.update(len(task))
                if len(documents) >= limit:
                    break
        _write(self.path, _unique(documents), bad)


def _labeled(document: Document, target: Literal["kind", "package"]) -> Document:
    """Make the document's kind or top-level package its target, and remove the line of text that reveals it."""
    package = document.id.removeprefix("pydocs:").partition(".")[0].partition("#")[0]
    text = document.text if document.kind == "topic" else document.text.partition("\n\n")[2]
    return document._replace(text=text, target=document.kind if target == "kind" else package)


def _topics() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name, text in topics.items():
        yield Document(f"pydocs:topics.{name}", text.strip(), "pydocs", "topic")


def _source_files(packages: tuple[str, ...] | None) -> Iterator[tuple[str, str]]:
    """Yield (module name, path) for each file of the standard library and of installed packages, in a fixed order."""
    import sysconfig

    from pipeline.sources.pydocs_parse import SKIPPED_FOLDERS

    roots = [Path(sysconfig.get_path("stdlib"))]
    roots += [Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages") and Path(p).is_dir()]
    for root in sorted(set(roots)):
        for folder, folders, names in os.walk(root):
            below = Path(folder).relative_to(root).parts
            folders[:] = sorted(
                name
                for name in folders
                if name.isidentifier()
                and name not in SKIPPED_FOLDERS
                and (below or packages is None or name in packages)
            )
            for name in sorted(names):
                stem = name.removesuffix(".py")
                if stem == name or not stem.isidentifier() or stem.startswith("test_"):
                    continue
                module = ".".join(below if stem == "__init__" else (*below, stem))
                if module and (packages is None or module.split(".")[0] in packages):
                    yield module, os.path.join(folder, name)


def _tasks(files: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    task: list[tuple[str, str]] = []
    size = 0
    for module, path in files:
        task.append((module, path))
        size += Path(path).stat().st_size
        if size >= _TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


def _unique(documents: list[Document]) -> Iterator[Document]:
    """Make ids unique by appending a number. Conditional definitions and overloads have the same id."""
    seen: dict[str, int] = {}
    for document in documents:
        seen[document.id] = count = seen.get(document.id, 0) + 1
        yield document if count == 1 else document._replace(id=f"{document.id}#{count}")


def _write(path: Path, documents: Iterator[Document], bad: BadInputs) -> None:
    """Write the cache file atomically. Its metadata records the files that could not be parsed."""
    import json

    import pyarrow
    import pyarrow.parquet as parquet

    schema = pyarrow.schema([(name, pyarrow.string()) for name in _CACHED])
    schema = schema.with_metadata({"bad_inputs": json.dumps(bad.dump())})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with parquet.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer:
        group: list[dict[str, str]] = []
        size = 0
        for document in documents:
            # Escapes in docstrings can produce lone surrogates, which UTF-8 cannot encode.
            group.append({name: getattr(document, name).encode("utf-8", "replace").decode() for name in _CACHED})
            size += len(document.text)
            if size >= _GROUP_BYTES:
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                group, size = [], 0
        writer.write_table(pyarrow.Table.from_pylist(group, schema))
    os.replace(partial, path)


def _readable(path: Path) -> bool:
    """Return whether a cache file exists and is intact."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        _bad_inputs(file)
        for group in range(file.num_row_groups):
            file.read_row_group(group)
    except FileNotFoundError:
        return False
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path}: damaged cache ({' '.join(str(error).split())}): parsing again")
        return False
    return True


def _bad_inputs(file: Any) -> dict[str, Any]:
    """Return the counts of files that could not be parsed when the cache file was written."""
    import json

    counts: dict[str, Any] = json.loads(file.schema_arrow.metadata[b"bad_inputs"])
    return counts
