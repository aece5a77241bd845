"""A quick try of a source: its first documents read and cleaned in a temporary folder, nothing of the run touched."""

import tempfile
from pathlib import Path

from artefacts.progress import bar
from configs.errors import RequestError
from configs.schema import Recipe
from pipeline import tables
from pipeline import workers as processes
from pipeline.bad_inputs import BadInputs
from pipeline.documents import by_source, opened
from pipeline.ingest import clean_part, kept_path, prepare, say_remarks
from pipeline.sources.pydocs import PydocsSource


def preview(recipe: Recipe, limit: int) -> list[str]:
    """Tables of the first ``limit`` documents of each source.

    Raises:
        RequestError: nothing could be read.
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
                for part in source.parts(workers):
                    _, read = clean_part(dataset, source, part, number, folder, recipe.data.clean, left)
                    progress.update(read)
                    number, left = number + 1, left - read
                    if left <= 0:
                        break
        found = by_source(folder)
        if not any(counts["read"] for counts in found.values()):
            bad = BadInputs()
            for counts in found.values():
                bad.merge(counts["bad"].dump())
            bad.check(recipe.data.max_bad_fraction, ", ".join(source.name for source in sources.values()))
            raise RequestError("nothing was read")
        return [*tables.sources(found), "", *tables.lengths([kept_path(folder, n) for n in range(number)])]
