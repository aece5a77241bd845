"""The documents stage: source to cleaned documents, duplicates and what the sample leaves out taken away.

``documents/clean-*.parquet`` holds id, text, source, kind, bytes (of UTF-8) and digest (first half of the text's
sha256); ``rejected-*.parquet`` holds what cleaning dropped, with the reason.
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from artefacts import fingerprint, manifest, publish
from artefacts.layout import RunLayout
from artefacts.manifest import Manifest
from artefacts.progress import bar
from artefacts.stage import open_stage
from configs.errors import RequestError
from configs.schema import Recipe
from pipeline import workers as processes
from pipeline.bad_inputs import BadInputs
from pipeline.sources import Source, open_source

#: Text of a clean shard, in bytes, about.
_SHARD_BYTES = 256 << 20


def build(recipe: Recipe) -> Manifest | None:
    """Read, clean and publish the documents; None where they are up to date.

    Raises:
        RequestError: nothing to read, too many unreadable inputs, or nothing left after cleaning.
    """
    section = recipe.data
    source = open_source(recipe)
    target = RunLayout.of(recipe).documents
    # Where the source lies does not matter, what it holds does: inputs() says that.
    identity: dict[str, Any] = {
        "source": {key: value for key, value in section.source.identity().items() if key != "path"},
        "clean": section.clean.identity(),
    }
    if section.source.sample_bytes:
        identity["seed"] = recipe.run.seed
    with open_stage("documents", target, identity, source.inputs()) as stage:
        if stage.finished:
            return None
        bad, counts = _clean_parts(recipe, source, stage.scratch)
        bad.check(section.max_bad_fraction, source.name)
        counts |= _merge(stage.scratch, stage.work, recipe)
        if not counts["documents"]:
            raise RequestError(f"{source.name}: no document is left after cleaning: {_listed(counts['dropped'])}")
        counts["bad_inputs"] = dict(bad.reasons)
        return stage.publish(counts, manifest.versions("pyarrow"), source.details())


def _listed(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())


def _clean_parts(recipe: Recipe, source: Source, folder: Path) -> tuple[BadInputs, dict[str, Any]]:
    """Clean every part, in parallel; those that an earlier start finished are kept."""
    from pipeline.clean_parts import clean_part

    workers = processes.count(recipe.data.workers)
    parts = source.parts(workers)
    plan = fingerprint.of_value([repr(part) for part in parts])
    if not (folder / "plan").exists() or (folder / "plan").read_text() != plan:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        publish.write_text(folder / "plan", plan)
    bad = BadInputs()
    counts = {"read_documents": 0, "read_bytes": 0}
    tasks = [(source, part, number, folder, recipe.data.clean) for number, part in enumerate(parts)]
    with bar(len(parts), "part", "documents") as progress:
        for found in processes.ordered(clean_part, tasks, min(workers, len(tasks) or 1)):
            bad.merge(found["bad"])
            counts["read_documents"] += found["read"]
            counts["read_bytes"] += found["read_bytes"]
            progress.update()
    return bad, counts


def _merge(parts: Path, work: Path, recipe: Recipe) -> dict[str, Any]:
    """Take duplicates and the unsampled away and write the final shards, in the order of the source."""
    import numpy as np
    import pyarrow.parquet as parquet

    from pipeline.clean_parts import kept_path, rejected_path
    from pipeline.shards import ParquetShards

    for leftover in work.glob("*.parquet"):
        leftover.unlink()
    numbers = range(len(list(parts.glob("*.json"))))
    unique, sampled = _chosen(parts, len(numbers), recipe)
    dropped: Counter[str] = Counter()
    total = seen = 0
    with (
        ParquetShards(work, "clean", _SHARD_BYTES) as kept,
        ParquetShards(work, "rejected", _SHARD_BYTES) as rejected,
    ):
        for number in numbers:
            refused = parquet.read_table(rejected_path(parts, number))
            dropped.update(refused["reason"].to_pylist())
            rejected.write(refused)
            file = parquet.ParquetFile(kept_path(parts, number))
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                here = slice(seen, seen + len(table))
                seen += len(table)
                chosen = table.filter(sampled[here])
                kept.write(chosen)
                total += int(np.sum(chosen["bytes"].to_numpy()))
                rejected.write(_as_duplicates(table.filter(~unique[here])))
    if duplicates := int(np.sum(~unique)):
        from pipeline.clean import DUPLICATE

        dropped[DUPLICATE] = duplicates
    outside = int(np.sum(unique & ~sampled))
    return {
        "documents": int(np.sum(sampled)),
        "bytes": total,
        "dropped": dict(dropped),
        "outside_sample": outside,
    }


def _chosen(parts: Path, count: int, recipe: Recipe) -> tuple[Any, Any]:
    """Masks over all cleaned documents: the first of each text, and those of them that the sample takes."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet as parquet

    from pipeline.clean_parts import KEPT_SCHEMA, kept_path
    from tokenizer.sample import keyed_hashes, smallest

    columns = ["id", "bytes", "digest"]
    empty = pyarrow.schema([KEPT_SCHEMA.field(name) for name in columns]).empty_table()
    table = pyarrow.concat_tables(
        [empty, *(parquet.read_table(kept_path(parts, number), columns=columns) for number in range(count))]
    )
    unique = np.ones(len(table), dtype=bool)
    if recipe.data.clean.exact_dedup and len(table):
        digests = np.frombuffer(b"".join(table["digest"].to_pylist()), dtype="V16")
        unique[:] = False
        unique[np.unique(digests, return_index=True)[1]] = True
    budget = recipe.data.source.sample_bytes
    sizes = table["bytes"].to_numpy()
    if budget is None or int(sizes[unique].sum()) <= budget:
        return unique, unique.copy()
    sampled = np.zeros(len(table), dtype=bool)
    hashes = keyed_hashes(recipe.run.seed, "documents", table["id"].filter(unique).to_pylist())
    sampled[unique] = smallest(hashes, sizes[unique], budget)
    return unique, sampled


def _as_duplicates(table: Any) -> Any:
    import pyarrow

    from pipeline.clean import DUPLICATE

    reasons = pyarrow.array([DUPLICATE] * len(table), pyarrow.string())
    return table.select(["id", "text", "source", "kind"]).append_column("reason", reasons)
