"""The documents stage: turn sources into cleaned, deduplicated and sampled documents.

The stage runs four steps in order:

1. ``ingest.py`` reads and cleans every part of every source.
2. ``duplicates.py`` compares the documents of all parts and decides which ones stay.
3. ``write_shards.py`` writes the documents that stay.
4. ``stage.py`` publishes the shards with their manifest.

Several tasks can share the first three steps. An interrupted step resumes where it stopped.

``documents/clean-*.parquet`` has the columns id, text, source, kind, target (null if there is none), bytes (the text's
size in UTF-8) and digest (the first half of the text's SHA-256 or, if there is a target, a digest of both).
``rejected-*.parquet`` holds the dropped documents, each with the reason. ``unreadable.json`` is written if inputs could
not be read, and lists the first hundred of them for each reason.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artefacts import fingerprint, manifest, repair_hints
from artefacts.manifest import Manifest
from artefacts.pages.formats import compact
from artefacts.stage import Stage, open_stage
from configs.checks.data_guard import guard
from configs.identities import documents_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe
from pipeline.documents import input_fingerprints
from pipeline.parallel import ALL_TASKS, TaskShard
from pipeline.sources.base import Source
from pipeline.sources.registry import open_sources
from pipeline.sources.storage.digests import digests_of

# The steps import numpy and Arrow, so they are imported only if there is work to do.


@contextmanager
def _open_stage(recipe: Recipe, task_shard: TaskShard) -> Iterator[tuple[Stage, dict[str, Source]]]:
    """Open the stage and its sources. Finished documents can be opened even if their sources are missing."""
    target = RunLayout.of(recipe).documents
    sources = open_sources(recipe)
    published = repair_hints.read_manifest("documents", target)
    check = guard(recipe, "documents")
    with digests_of(target) as digests:
        inputs = input_fingerprints.current_or_recorded(recipe, sources, published, target, digests)
        shared = task_shard != ALL_TASKS
        with open_stage("documents", target, documents_identity(recipe), inputs, shared, check) as stage:
            yield stage, sources


def _parts_folder(stage: Stage, sources: dict[str, Source]) -> Path:
    """Return the parts folder. Its name depends on how the sources are divided, so stale parts are never reused."""
    scheme = fingerprint.of_value([source.partition_scheme for source in sources.values()])
    return stage.scratch / f"parts-{scheme[:12]}"


def ingest(recipe: Recipe, task_shard: TaskShard) -> list[str] | None:
    """Read and clean a task's parts.

    Returns:
        Tables about everything read so far, or None if the documents are up to date.

    Raises:
        RequestError: there is nothing to read, or (if one task does all the work) too many inputs are unreadable.
    """
    with _open_stage(recipe, task_shard) as (stage, sources):
        if stage.finished:
            return None
        from pipeline.documents import counts, source_checks, tables
        from pipeline.documents.ingest import part_counts, read_parts

        parts = _parts_folder(stage, sources)
        read_parts(recipe, sources, parts, task_shard)
        if task_shard == ALL_TASKS:
            source_checks.check_reading(recipe, sources, parts)
        kept = [path for path in sorted(parts.glob("[0-9]*.parquet")) if "rejected" not in path.name]
        lines = [*tables.sources(counts.by_source(part_counts(parts))), "", *tables.lengths(kept)]
        return lines if task_shard == ALL_TASKS else [tables.coverage(parts), "", *lines]


def find_duplicates(recipe: Recipe, task_shard: TaskShard) -> bool:
    """Find duplicates among the documents of all parts: run the comparisons assigned to one task.

    Returns:
        Whether all comparisons are finished and the documents to keep have been chosen.

    Raises:
        RequestError: parts are missing, or (if one task does all the work) too many inputs are unreadable.
    """
    with _open_stage(recipe, task_shard) as (stage, sources):
        if stage.finished:
            return True
        from pipeline.documents import duplicates, source_checks

        parts = _parts_folder(stage, sources)
        if task_shard == ALL_TASKS:
            source_checks.check_reading(recipe, sources, parts)
        return duplicates.find(recipe, parts, task_shard)


def build(recipe: Recipe, task_shard: TaskShard = ALL_TASKS) -> Manifest | None:
    """Do all remaining work and publish the documents. If there are several tasks, only write this task's shards.

    Returns:
        The manifest, or None if the documents were up to date or if this was one of several tasks.

    Raises:
        RequestError: there is nothing to read, too many inputs are unreadable, a source has no documents left after
            cleaning, or (with several tasks) an earlier step is not finished.
    """
    with _open_stage(recipe, task_shard) as (stage, sources):
        if stage.finished:
            return None
        from pipeline.documents import duplicates, source_checks, write_shards
        from pipeline.documents.ingest import read_parts

        parts = _parts_folder(stage, sources)
        if task_shard == ALL_TASKS:
            read_parts(recipe, sources, parts, task_shard)
            source_checks.check_reading(recipe, sources, parts)
            duplicates.find(recipe, parts, task_shard)
        shards = write_shards.write_shards(recipe, parts, stage.work, task_shard)
        return _publish(recipe, stage, sources, parts, shards) if task_shard == ALL_TASKS else None


def _publish(
    recipe: Recipe, stage: Stage, sources: dict[str, Source], parts: Path, shards: list[dict[str, Any]]
) -> Manifest:
    """Publish the shards as the documents artefact. ``shards`` holds each shard's counts.

    Raises:
        RequestError: a source has no documents left.
    """
    from pipeline.documents import counts, source_checks
    from pipeline.documents.ingest import part_counts

    read = counts.by_source(part_counts(parts))
    totals = counts.totals(read, shards)
    source_checks.require_documents(recipe, totals.get("sources", dict.fromkeys(sources, totals)))
    counts.write_unreadable(read, stage.work)
    details = {
        "files": counts.files_by_source(list(sources), shards),
        "sources": {name: source.details() for name, source in sources.items()},
        "paths": input_fingerprints.local_paths(recipe, sources),
    }
    return stage.publish(totals, manifest.versions("pyarrow", "numpy"), details)


def outcome(published: Manifest, recipe: Recipe) -> list[str]:
    """Return lines that describe what ``build`` published."""
    counts = published.counts
    line = f"{RunLayout.of(recipe).documents}: {counts['documents']:,} documents, {compact(counts['bytes'], 'B')}; "
    line += f"{sum(counts['dropped'].values()):,} dropped"
    if any(section.sample_bytes for section in recipe.data.named_sources.values()):
        line += f", {counts['not_sampled']:,} not sampled"
    masked = ", ".join(f"{count:,} {kind}" for kind, count in counts["masked"].items())
    return [line, f"masked before deduplication: {masked}"] if masked else [line]
