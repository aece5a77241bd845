"""The packing stage: build an index that packs the documents of token shards into samples (``train.packing=best_fit``).

For each training shard, ``packing/`` has a ``.pieces.npy`` and a ``.samples.npy`` file with the shard's name (see
``best_fit.Packing``). The loader memory-maps them. Offsets are in tokens from the start of the shard.
"""

import json
from pathlib import Path
from typing import Any

from artefacts import atomic, manifest, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.progress import bar
from artefacts.stage import Stage, open_stage
from configs.checks.data_guard import guard
from configs.run_layout import RunLayout
from configs.schema import Recipe
from pipeline import parallel


def build(recipe: Recipe) -> Manifest | None:
    """Pack every training shard and publish the index. Returns the manifest, or None if the index was up to date.

    Raises:
        RequestError: the recipe does not use packing, or the shards are missing or damaged.
    """
    layout, train = RunLayout.of(recipe), recipe.train
    if train.packing != "best_fit":
        raise RequestError(f"train.packing={train.packing} needs no index: there is nothing to pack")
    tokens = manifest.require(layout.tokens, "data")
    identity = {"packing": train.packing, "context_length": train.context_length}
    with open_stage(
        "packing", layout.packing, identity, {"tokens": tokens.fingerprint}, check_replacing=guard(recipe, "packing")
    ) as stage:
        if stage.finished:
            return None
        repair_hints.check_sizes("tokens", layout.tokens)
        counts = _pack_all(stage, layout.tokens, train.context_length, parallel.count(recipe.data.workers))
        return stage.publish(counts, manifest.versions("numpy"))


def outcome(published: Manifest | None, recipe: Recipe) -> str:
    """Return a line that describes what ``build`` did."""
    folder = RunLayout.of(recipe).packing
    if published is None:
        return f"{folder}: up to date"
    counts = published.counts
    return (
        f"{folder}: {counts['samples']:,} samples of {recipe.train.context_length:,} tokens, "
        f"{counts['utilization']:.2%} of them text; {counts['documents_cut']:,} of {counts['documents']:,} documents "
        f"cut (without packing: {counts['documents_cut_by_windows']:,})"
    )


def _pack_all(stage: Stage, tokens: Path, context_length: int, workers: int) -> dict[str, Any]:
    """Pack the shards that are not packed yet. Returns the total counts for all shards."""
    from pipeline.tokens.indexed_dataset import shard_prefixes

    prefixes = shard_prefixes(tokens, "train")
    count_files = {prefix: _counts_path(stage.scratch, prefix.relative_to(tokens)) for prefix in prefixes}
    todo = [prefix for prefix in prefixes if not count_files[prefix].exists()]
    tasks = [(prefix, stage.work / prefix.relative_to(tokens), context_length) for prefix in todo]
    with bar(len(prefixes), "shard", "packing", initial=len(prefixes) - len(todo)) as progress:
        packed = parallel.ordered(pack_shard, tasks, min(workers, len(tasks) or 1))
        for prefix, counts in zip(todo, packed, strict=True):
            atomic.write_json(count_files[prefix], counts)
            progress.update()
    totals: dict[str, int] = {}
    for path in count_files.values():
        for name, count in json.loads(path.read_text()).items():
            totals[name] = totals.get(name, 0) + count
    return {**totals, "utilization": totals["tokens"] / (max(1, totals["samples"]) * context_length)}


def _counts_path(scratch: Path, shard: Path) -> Path:
    """Return the path of a packed shard's counts. They are written after its index, to mark the shard as packed."""
    return scratch / f"{shard.as_posix().replace('/', '.')}.json"


def pack_shard(prefix: Path, target: Path, context_length: int) -> dict[str, int]:
    """Write one shard's index under the name ``target``, and return its counts."""
    import numpy as np

    from pipeline.tokens.best_fit import pack
    from pipeline.tokens.indexed_dataset import IndexedDataset

    lengths = IndexedDataset(prefix).document_lengths()
    packing = pack(lengths, context_length)
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix, array in ((".pieces.npy", packing.pieces), (".samples.npy", packing.samples)):
        _save(target.with_name(target.name + suffix), array)
    ends = np.cumsum(lengths)
    crossing = (ends - lengths) // context_length < (ends - 1) // context_length
    return {
        "documents": len(lengths),
        "tokens": int(lengths.sum()),
        "samples": len(packing.samples) - 1,
        "documents_cut": packing.cut,
        "documents_cut_by_windows": int((crossing & (lengths > 0)).sum()),
    }


def _save(path: Path, array: Any) -> None:
    import io

    import numpy as np

    content = io.BytesIO()
    np.save(content, array)
    atomic.write_bytes(path, content.getvalue())
