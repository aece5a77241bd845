"""A quick try of a source: its first documents read and cleaned in a temporary folder, nothing of the run touched."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from artefacts.errors import RequestError
from artefacts.progress import bar
from configs.schema import Recipe
from pipeline import parallel as processes
from pipeline.document import Document, id_prefix
from pipeline.documents import tables
from pipeline.documents.ingest import clean_part, kept_path, prepare, say_remarks
from pipeline.documents.stage import by_source, opened
from pipeline.sources.bad_inputs import BadInputs, NoneGoodError
from pipeline.sources.base import Part, Source
from pipeline.sources.pydocs import PydocsSource

#: Of a source whose first so many inputs cannot be read (of more, where more documents are asked for), no more is read.
_PATIENCE = 1000


def preview(recipe: Recipe, limit: int) -> list[str]:
    """Tables of the first ``limit`` documents of each source.

    Raises:
        RequestError: nothing of a source could be read.
    """
    prepare(recipe.data.clean, warn=True)
    sources = opened(recipe)
    say_remarks(sources)
    workers = processes.count(recipe.data.workers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        number = 0
        with bar(limit * len(recipe.data.named_sources), " documents", "trying") as progress:
            for dataset, source in sources.items():
                left = limit
                if isinstance(source, PydocsSource):
                    source = source.first(limit, folder / "pydocs")
                tried = _Tried(source, max(limit, _PATIENCE))
                for part in source.parts(workers):
                    # Of a source, only its reading is asked for there.
                    asked = cast(Source, tried)
                    _, read = clean_part(
                        dataset, asked, part, number, folder, recipe.data.clean, id_prefix(recipe, dataset), left
                    )
                    progress.update(read)
                    number, left = number + 1, left - read
                    if left <= 0 or tried.is_hopeless:
                        break
        found = by_source(folder)
        for name, source in sources.items():
            if name not in found or not found[name]["read"]:
                bad = found[name]["bad"] if name in found else BadInputs()
                bad.check(recipe.data.max_bad_fraction, source.name)
                raise RequestError(f"{source.name}: nothing was read")
        return [*tables.sources(found), "", *tables.lengths([kept_path(folder, n) for n in range(number)])]


class _Tried:
    """Reads a source until it has met some inputs, over all parts, of which none could be read."""

    def __init__(self, source: Source, patience: int) -> None:
        self._source = source
        self._good = 0
        self._left = patience

    @property
    def is_hopeless(self) -> bool:
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
