"""Preview each source: read and clean its first documents in a temporary folder, without touching the run's files."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from artefacts.errors import RequestError
from artefacts.progress import bar
from configs.schema import Recipe
from pipeline import parallel
from pipeline.document import Document, id_prefix
from pipeline.documents import tables
from pipeline.documents.counts import by_source
from pipeline.documents.ingest import clean_part, kept_path, part_counts, prepare, print_warnings
from pipeline.sources.bad_inputs import BadInputs, NoneGoodError
from pipeline.sources.base import Part, Source
from pipeline.sources.pydocs import PydocsSource
from pipeline.sources.registry import open_sources

#: Give up on a source if none of its first 1000 inputs (or first ``limit`` inputs, if that is more) can be read.
_PATIENCE = 1000


def preview(recipe: Recipe, limit: int) -> list[str]:
    """Return tables about the first ``limit`` documents of each source.

    Raises:
        RequestError: no input of a source could be read.
    """
    prepare(recipe.data.clean, warn=True)
    sources = open_sources(recipe)
    print_warnings(sources)
    workers = parallel.count(recipe.data.workers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        number = 0
        with bar(limit * len(recipe.data.named_sources), " documents", "trying") as progress:
            for dataset, source in sources.items():
                left = limit
                if isinstance(source, PydocsSource):
                    source = source.first(limit, folder / "pydocs")
                patient = _Patient(source, max(limit, _PATIENCE))
                for part in source.parts(workers):
                    # ``clean_part`` calls only the source's ``read`` method.
                    readable = cast(Source, patient)
                    _, read = clean_part(
                        dataset, readable, part, number, folder, recipe.data.clean, id_prefix(recipe, dataset), left
                    )
                    progress.update(read)
                    number, left = number + 1, left - read
                    if left <= 0 or patient.is_exhausted:
                        break
        counts = by_source(part_counts(folder))
        for name, source in sources.items():
            if name not in counts or not counts[name]["read"]:
                bad = counts[name]["bad"] if name in counts else BadInputs()
                key = recipe.data.key_of(recipe.data.named_sources[name])
                bad.check(recipe.data.max_bad_fraction, source.name, key)
                raise RequestError(f"{source.name}: nothing was read")
        return [*tables.sources(counts), "", *tables.lengths([kept_path(folder, n) for n in range(number)])]


class _Patient:
    """Reads a source's parts, and stops if all of its first inputs are unreadable. Inputs are counted across parts."""

    def __init__(self, source: Source, patience: int) -> None:
        self._source = source
        self._good = 0
        self._left = patience

    @property
    def is_exhausted(self) -> bool:
        """Whether reading has stopped because all of the first inputs were unreadable."""
        return not self._good and self._left <= 0

    def read(self, part: Part, bad: BadInputs) -> Iterator[Document]:
        bad.patience = None if self._good else self._left
        try:
            for document in self._source.read(part, bad):
                self._good += 1
                yield document
        except NoneGoodError:
            pass
        self._left -= sum(bad.reasons.values())
