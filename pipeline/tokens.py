"""The tokens stage: documents to training and validation shards of token ids.

``tokens/train-*.bin/.idx`` and ``val-*.bin/.idx`` are indexed datasets, one document a sequence, each ended by
``<|endoftext|>``; ``validation.parquet`` lists the documents held out, with their overlap and whether they were kept.
"""

from pathlib import Path
from typing import Any

from artefacts import manifest, repair
from artefacts.layout import RunLayout
from artefacts.manifest import Manifest
from artefacts.progress import bar
from artefacts.stage import open_stage
from configs.schema import Recipe
from pipeline import workers as processes

#: Why a held-out document is in no shard.
OVERLAP = "validation document that training documents contain"


def build(recipe: Recipe) -> Manifest | None:
    """Split, tokenise and publish the shards; None where they are up to date.

    Raises:
        RequestError: documents or tokenizer are missing or damaged, or the documents cannot be split.
    """
    layout = RunLayout.of(recipe)
    documents = manifest.require(layout.documents, "python -m pipeline clean --recipe ...")
    tokenizer = manifest.require(layout.tokenizer, "python -m tokenizer train --recipe ...")
    inputs = {"documents": documents.fingerprint, "tokenizer": tokenizer.fingerprint}
    identity = {"tokens": recipe.data.tokens.identity(), "seed": recipe.run.seed}
    with open_stage("tokens", layout.tokens, identity, inputs) as stage:
        if stage.finished:
            return None
        repair.check_sizes("documents", layout.documents)
        repair.check_sizes("tokenizer", layout.tokenizer)
        from pipeline.split import split

        workers = processes.count(recipe.data.workers)
        sides = split(layout.documents, recipe.data.tokens, recipe.run.seed, workers)
        if sides.forced:
            print("no document falls to validation by its hash: the one with the smallest hash is held out")
        counts = _tokenise(recipe, stage.work, sides, workers)
        vocab_size = tokenizer.details["vocab_size"]
        from pipeline.indexed_dataset import id_type

        details = {
            "vocab_size": vocab_size,
            "dtype": id_type(vocab_size).name,
            "tokenizer": tokenizer.fingerprint,
            "forced_validation": sides.forced,
        }
        return stage.publish(counts, manifest.versions("sentencepiece", "numpy", "pyarrow"), details)


def _tokenise(recipe: Recipe, work: Path, split: Any, workers: int) -> dict[str, Any]:
    """Write all shards; those that an earlier start finished are kept."""
    import numpy as np

    from pipeline.indexed_dataset import id_type
    from pipeline.shards import read_columns, row_groups
    from pipeline.split import LEFT_OUT, TRAIN, VALIDATION
    from pipeline.token_shards import TokenShards, encode_group, load_tokenizer
    from tokenizer.load import Tokenizer

    layout = RunLayout.of(recipe)
    kind = id_type(Tokenizer.load(layout.tokenizer).vocab_size)
    table = read_columns(layout.documents, ["id", "bytes"])
    sizes = table["bytes"].to_numpy()
    writers = {
        TRAIN: TokenShards(work, "train", recipe.data.tokens.shard_tokens, kind),
        VALIDATION: TokenShards(work, "val", recipe.data.tokens.shard_tokens, kind),
    }
    todo = split.sides.copy()
    for side, writer in writers.items():
        todo[np.flatnonzero(split.sides == side)[: writer.documents]] = LEFT_OUT
    tasks, seen, done = [], 0, int(sizes[todo != split.sides].sum())
    for path, group, rows in row_groups(layout.documents):
        here = todo[seen : seen + rows]
        seen += rows
        if (here != LEFT_OUT).any():
            tasks.append((path, group, [here == side for side in writers]))
    with bar(int(sizes[split.sides != LEFT_OUT].sum()), "B", "tokens", initial=done) as progress:
        workers = min(workers, len(tasks) or 1)
        for found in processes.ordered(encode_group, tasks, workers, load_tokenizer, (layout.tokenizer,)):
            for writer, (ids, lengths, size) in zip(writers.values(), found, strict=True):
                writer.add(ids, lengths)
                progress.update(size)
    for writer in writers.values():
        writer.finish()
    _write_validation(work / "validation.parquet", table["id"].to_numpy(zero_copy_only=False), split)
    return {
        **{
            name: {
                "documents": int((split.sides == side).sum()),
                "tokens": writers[side].tokens,
                "bytes": int(sizes[split.sides == side].sum()),
                "shards": writers[side].shards,
            }
            for name, side in (("train", TRAIN), ("validation", VALIDATION))
        },
        "dropped": {OVERLAP: int((split.sides == LEFT_OUT).sum())},
    }


def _write_validation(path: Path, ids: Any, split: Any) -> None:
    import os

    import pyarrow
    import pyarrow.parquet as parquet

    from pipeline.split import VALIDATION

    table = pyarrow.table(
        {
            "id": pyarrow.array(ids[split.held_out], pyarrow.string()),
            "overlap": split.overlap,
            "kept": split.sides[split.held_out] == VALIDATION,
        }
    )
    beside = path.with_name(f".{path.name}.partial")
    parquet.write_table(table, beside, compression="zstd")
    os.replace(beside, path)
