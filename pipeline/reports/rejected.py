"""Show dropped documents or chat examples: counts by reason, and the first few of them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from artefacts import command_hints, repair_hints
from artefacts.errors import RequestError
from configs.run_layout import RunLayout
from configs.schema import Recipe

#: Maximum number of characters to show of a document.
_SHOWN_CHARS = 200


def rejected(recipe: Recipe, reason: str | None, limit: int, stage: str | None = None) -> Iterator[str]:
    """Yield the number of documents dropped for each reason, then the id, reason and beginning of some documents.

    Args:
        recipe: the recipe that the documents were built with.
        reason: text that the reason must contain, ignoring case, or None for any reason.
        limit: maximum number of documents to show.
        stage: show the chat examples of this fine-tuning stage instead, which also include examples that were cut.

    Raises:
        RequestError: the artefact is missing or damaged, or nothing was dropped for a matching reason.
    """
    layout = RunLayout.of(recipe)
    artefact, item = ("documents", "document") if stage is None else ("examples", "example")
    folder = layout.documents if stage is None else layout.examples_of(stage)
    published = repair_hints.read_manifest(artefact, folder)
    if published is None:
        command = command_hints.make(repair_hints.TARGETS[artefact])
        raise RequestError(f"{folder} is missing or not finished: run `{command}` first")
    repair_hints.check_sizes(artefact, folder)
    reasons: Counter[str] = Counter(published.counts["dropped"])
    for more in ("altered", "bad_inputs") if stage is not None else ():
        reasons.update(published.counts.get(more, {}))
    counts: dict[str, int] = dict(sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0])))
    chosen = [name for name in counts if reason is None or reason.casefold() in name.casefold()]
    if not counts:
        yield f"{folder}: no {item} was dropped"
        return
    if not chosen:
        raise RequestError(f"--reason {reason}: no {item} was dropped for it; the reasons are: {'; '.join(counts)}")
    width = max(len(f"{counts[name]:,}") for name in chosen)
    yield from (f"{counts[name]:>{width},}  {name}" for name in chosen)
    paths = [folder / name for name in sorted(published.files) if name.startswith("rejected-")]
    yield from _first(paths, chosen, limit, artefact)


def _first(paths: list[Path], reasons: list[str], limit: int, artefact: str) -> Iterator[str]:
    """Yield the first documents with these reasons. Only one row group at a time is held in memory."""
    import pyarrow
    import pyarrow.compute as compute

    from pipeline.documents import read_shards

    left = limit
    for path in paths:
        for group in range(len(read_shards.group_rows(path, artefact))):
            if left <= 0:
                return
            reason_column = read_shards.read_group(path, group, ["reason"], artefact)["reason"]
            places = compute.indices_nonzero(compute.is_in(reason_column, pyarrow.array(reasons)).combine_chunks())[
                :left
            ]
            if not len(places):
                continue
            table = read_shards.read_group(path, group, ["id", "text", "reason"], artefact).take(places)
            begun = compute.utf8_slice_codeunits(table["text"], 0, _SHOWN_CHARS)
            left -= len(table)
            columns = (table["id"].to_pylist(), table["reason"].to_pylist(), begun.to_pylist())
            for identifier, why, text in zip(*columns, strict=True):
                yield f"\n{_plain(identifier)}: {why}\n  {_plain(text)}"


def _plain(text: str) -> str:
    """Return the text on one line, without control characters."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))
