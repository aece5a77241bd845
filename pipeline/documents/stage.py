"""The documents stage: sources to cleaned documents, duplicates and what a sample leaves out taken away.

Three steps, each of which can be shared by several tasks and goes on where it was stopped: ``ingest`` reads and cleans
every part of every source, ``find_duplicates`` compares them all, ``build`` writes the shards and publishes them.
``documents/clean-*.parquet`` holds id, text, source, kind, target (null where there is none), bytes (of the text, in
UTF-8) and digest (first half of the text's sha256, with a target of both); ``rejected-*.parquet`` holds what was
dropped, with the reason; ``unreadable.json`` where input could not be read (the first hundred places of each reason).
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from artefacts import atomic, command_hints, fingerprint, manifest, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.pages.formats import compact
from artefacts.progress import bar
from artefacts.stage import Stage, open_stage
from configs.checks.data_guard import guard
from configs.identities import documents_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe
from pipeline import parallel as processes
from pipeline.document import Document
from pipeline.documents import input_fingerprints
from pipeline.parallel import WHOLE, Share
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import Source
from pipeline.sources.registry import open_source
from pipeline.sources.storage.digests import digests_of

#: Counts of the parts, and of the shards, that add up.
_READ = ("read", "read_bytes", "kept", "kept_bytes")
_COUNTED = ("documents", "bytes", "outside_sample", "removed_lines")


def ingest(recipe: Recipe, share: Share) -> list[str] | None:
    """Read and clean the share's parts; tables of what is read so far, None where the documents are up to date.

    Raises:
        RequestError: nothing to read, or (not for one task of several) too much could not be read.
    """
    sources = opened(recipe)
    with _stage(recipe, sources, share) as stage:
        if stage.finished:
            return None
        from pipeline.documents import tables
        from pipeline.documents.ingest import ingest as read

        parts = _parts(stage, sources)
        read(recipe, sources, parts, share)
        if share == WHOLE:
            _checked(recipe, sources, parts)
        kept = [path for path in sorted(parts.glob("[0-9]*.parquet")) if "rejected" not in path.name]
        lines = [*tables.sources(by_source(parts)), "", *tables.lengths(kept)]
        return lines if share == WHOLE else [tables.part_of(parts), "", *lines]


def outcome(made: Manifest, recipe: Recipe) -> list[str]:
    """Lines about what ``build`` made."""
    counts = made.counts
    said = f"{RunLayout.of(recipe).documents}: {counts['documents']:,} documents, {compact(counts['bytes'], 'B')}; "
    said += f"{sum(counts['dropped'].values()):,} dropped"
    if any(section.sample_bytes for section in recipe.data.named_sources.values()):
        said += f", {counts['outside_sample']:,} outside the sample"
    masked = ", ".join(f"{count:,} {kind}" for kind, count in counts["masked"].items())
    return [said, f"masked as it was read: {masked}"] if masked else [said]


def find_duplicates(recipe: Recipe, share: Share) -> bool:
    """Compare all documents; True when every task's work is done and the verdicts stand.

    Raises:
        RequestError: parts are missing; or (not for one task of several) too much could not be read.
    """
    sources = opened(recipe)
    with _stage(recipe, sources, share) as stage:
        if stage.finished:
            return True
        parts = _parts(stage, sources)
        if share == WHOLE:
            _checked(recipe, sources, parts)
        return _compare(recipe, parts, share)


def build(recipe: Recipe, share: Share = WHOLE) -> Manifest | None:
    """Everything that is left to do of the documents, and (not for one task of several) their publishing.

    Returns:
        The manifest; None where the documents are up to date, or the share's part of them is written.

    Raises:
        RequestError: nothing to read, too many unreadable inputs, nothing left of a source after cleaning, or (for one
            task of several) an earlier step is not finished.
    """
    sources = opened(recipe)
    with _stage(recipe, sources, share) as stage:
        if stage.finished:
            return None
        parts = _parts(stage, sources)
        if share == WHOLE:
            from pipeline.documents.ingest import ingest as read

            read(recipe, sources, parts, share)
            _checked(recipe, sources, parts)
            _compare(recipe, parts, share)
        from pipeline.documents.source_checks import require_documents

        done = _assemble(recipe, parts, stage, share)
        if share != WHOLE:
            return None
        counts, details = _totals(sources, parts, done)
        each = counts.get("sources", dict.fromkeys(sources, counts))
        require_documents(recipe, {name: own["documents"] for name, own in each.items()}, each)
        details["paths"] = input_fingerprints.paths(recipe, sources)
        _list_unreadable(parts, stage.work)
        return stage.publish(counts, manifest.versions("pyarrow", "numpy"), details)


def opened(recipe: Recipe) -> dict[str, Source]:
    """Every source of the recipe by name.

    Raises:
        RequestError: there is nothing at a source's path.
    """
    return {name: open_source(section, recipe) for name, section in recipe.data.named_sources.items()}


@contextmanager
def _stage(recipe: Recipe, sources: dict[str, Source], share: Share) -> Iterator[Stage]:
    target = RunLayout.of(recipe).documents
    made = repair_hints.read_manifest("documents", target)
    check = guard(recipe, "documents")
    with digests_of(target) as digests:
        read = input_fingerprints.inputs_or_remembered(recipe, sources, made, target, digests)
        with open_stage("documents", target, documents_identity(recipe), read, share != WHOLE, check) as stage:
            yield stage


def _parts(stage: Stage, sources: dict[str, Source]) -> Path:
    """The folder of the parts; of another cut of the same sources nothing is kept."""
    # An earlier version wrote fewer columns.
    cut = fingerprint.of_value([*Document._fields, *(source.parting for source in sources.values())])
    return stage.scratch / f"parts-{cut[:12]}"


def by_source(parts: Path) -> dict[str, Any]:
    """Counts of the parts that are finished, by source."""
    found: dict[str, Any] = {}
    for path in sorted(parts.glob("[0-9]*.json")):
        counts = atomic.read_json(path)
        here = found.setdefault(
            counts["dataset"],
            {
                **dict.fromkeys(_READ, 0),
                "dropped": Counter(),
                "masked": Counter(),
                "bad": BadInputs(),
            },
        )
        for key in _READ:
            here[key] += counts[key]
        here["dropped"].update(counts["dropped"])
        # Not in what an earlier version left.
        here["masked"].update(counts.get("masked", {}))
        here["bad"].merge(counts["bad"])
    return found


def _checked(recipe: Recipe, sources: dict[str, Source], parts: Path) -> None:
    """Refuse a source of which too much could not be read, or nothing is left."""
    from pipeline.documents.ingest import finished_parts
    from pipeline.documents.source_checks import check_reading

    finished_parts(parts)
    found = by_source(parts)
    try:
        check_reading(recipe, sources, found)
    except RequestError:
        # Another recipe has to read anew what this one could make nothing of.
        if not any(counts["kept"] for counts in found.values()):
            shutil.rmtree(parts)
        raise


def _compare(recipe: Recipe, parts: Path, share: Share) -> bool:
    """Find duplicates, and (once all is compared) settle which documents go, and what the sample takes."""
    from pipeline import dedup
    from pipeline.documents.ingest import finished_parts

    finished_parts(parts)
    section = recipe.data.clean
    if dedup.kinds(section):
        _reduce(recipe, parts, dedup.plan(parts, section), share)
        if share == WHOLE:
            dedup.resolve(parts, section)
            _reduce(recipe, parts, dedup.plan_lines(parts, section), share)
    if share != WHOLE:
        return False
    _settle_sample(recipe, parts)
    return True


def _reduce(recipe: Recipe, parts: Path, tasks: list[Any], share: Share) -> None:
    from pipeline import dedup

    mine = [(parts, recipe.data.clean, task) for number, task in enumerate(tasks) if share.owns(number)]
    with bar(len(mine), "task", "duplicates", disable=not mine) as progress:
        for _ in processes.ordered(dedup.reduce, mine, processes.count(recipe.data.workers)):
            progress.update()


def _settle_sample(recipe: Recipe, parts: Path) -> None:
    """Write ``sample.json``: for each source the largest hash that its sample takes."""
    if (parts / "sample.json").exists():
        return
    import pyarrow
    import pyarrow.parquet as parquet

    from artefacts.hashing import Pieces, threshold
    from pipeline import dedup
    from pipeline.documents import write_shards
    from pipeline.documents.ingest import finished_parts, kept_path

    owners = [counts["dataset"] for counts in finished_parts(parts)]

    def pieces(dataset: str) -> Pieces:
        for number, owner in enumerate(owners):
            if owner == dataset:
                table = parquet.read_table(kept_path(parts, number), columns=["id", "bytes"])
                stays = write_shards.verdict(parts, recipe.data.clean, number).documents == dedup.KEPT
                table = table.filter(pyarrow.array(stays))
                yield write_shards.document_hashes(recipe.run.seed, table["id"]), table["bytes"].to_numpy()

    thresholds = {
        name: threshold(partial(pieces, name), section.sample_bytes)
        for name, section in recipe.data.named_sources.items()
        if section.sample_bytes
    }
    atomic.write_json(parts / "sample.json", thresholds)


def _assemble(recipe: Recipe, parts: Path, stage: Stage, share: Share) -> list[dict[str, Any]]:
    """Write the share's shards; counts of all of them when the share is the whole."""
    from pipeline.documents import write_shards
    from pipeline.documents.ingest import finished_parts

    plan = write_shards.plan(finished_parts(parts))
    if not (parts / "sample.json").exists():
        command = command_hints.python("pipeline dedup")
        raise RequestError(f"duplicates are not settled yet: run `{command}` (without --task) first")
    sampled = write_shards.Sampled(recipe.run.seed, atomic.read_json(parts / "sample.json"))
    counts = parts / "shards"
    counts.mkdir(exist_ok=True)
    if share == WHOLE:
        # Of another cut of the same sources there may be more.
        for path in stage.work.glob("*.parquet"):
            if int(path.stem.rpartition("-")[2]) >= len(plan):
                path.unlink()
    mine = [
        (shard, parts, counts, stage.work, recipe.data.clean, sampled) for shard in plan if share.owns(shard.number)
    ]
    with bar(sum(len(task[0].parts) for task in mine), "part", "shards", disable=not mine) as progress:
        for count in processes.ordered(write_shards.write_shard, mine, processes.count(recipe.data.workers)):
            progress.update(count)
    if share != WHOLE:
        return []
    return [atomic.read_json(counts / f"{shard.number:05d}.json") for shard in plan]


def _totals(
    sources: dict[str, Source], parts: Path, shards: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest's counts and details."""
    from pipeline.documents.write_shards import clean_name

    read = by_source(parts)
    each: dict[str, Any] = {}
    for name, found in read.items():
        own = [shard for shard in shards if shard["dataset"] == name]
        each[name] = {
            "read_documents": found["read"],
            "read_bytes": found["read_bytes"],
            **{key: sum(shard[key] for shard in own) for key in _COUNTED},
            "dropped": dict(sum((Counter(shard["dropped"]) for shard in own), Counter())),
            "masked": dict(found["masked"]),
            "bad_inputs": dict(found["bad"].reasons),
        }
    totals: dict[str, Any] = {}
    for counts in each.values():
        for key, value in counts.items():
            if isinstance(value, dict):
                before = totals.setdefault(key, {})
                before |= {name: before.get(name, 0) + count for name, count in value.items()}
            else:
                totals[key] = totals.get(key, 0) + value
    if len(each) > 1:
        totals["sources"] = each
    files: dict[str, list[str]] = {name: [] for name in sources}
    for number, shard in enumerate(shards):
        files[shard["dataset"]].append(clean_name(number))
    return totals, {"files": files, "sources": {name: source.details() for name, source in sources.items()}}


def _list_unreadable(parts: Path, work: Path) -> None:
    """Write ``unreadable.json``, where anything could not be read: for each source and reason where it was met."""
    places = {name: found["bad"].examples for name, found in by_source(parts).items() if found["bad"].reasons}
    if places:
        atomic.write_json(work / "unreadable.json", places)
