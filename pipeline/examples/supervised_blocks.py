"""Encode documents with targets into supervised examples, in independent blocks.

Block N (see ``pipeline.tokens.encode``) writes ``train-NNNNN.parquet`` and ``held-out-NNNNN.parquet``. A file is
written only if the block has examples for that side of the split. The block's counts, ``NNNNN.json``, are written last,
so a block with that file is finished.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from artefacts import atomic
from artefacts.hashing import Mask
from pipeline.documents import read_shards
from pipeline.tokens.encode import Block
from pipeline.tokens.held_out import Thresholds
from tokenizer.base import Tokenizer
from tokenizer.registry import load_tokenizer

TOO_LONG = "longer than train.context_length"
OTHER_LENGTH = "target whose length in tokens differs from its text"
NO_TARGET = "empty target"
NO_TEXT = "text without a token"

#: A side's file name prefix -> the side's name in the counts.
SIDES = {"train": "train", "held-out": "held_out"}


class Task(NamedTuple):
    """The task that the model is trained on.

    Attributes:
        kind: see ``ModelSection``.
        context_length: maximum number of tokens per example.
        classes: the class names, in order. A label is an index into them.
    """

    kind: Literal["token_classification", "seq2seq", "sequence_classification"]
    context_length: int
    classes: tuple[str, ...] = ()

    @property
    def schema(self) -> pyarrow.Schema:
        ids = pyarrow.list_(pyarrow.int32())
        labels_or_targets = ("label", pyarrow.int32()) if self.kind == "sequence_classification" else ("targets", ids)
        return pyarrow.schema([("ids", ids), labels_or_targets, ("source", pyarrow.string())])


class _Examples(NamedTuple):
    """The examples from one row group.

    Attributes:
        table: the examples in ``Task.schema``, including dropped ones.
        reasons: for each example, the index in ``names`` of the reason for dropping it, or -1 if it is kept.
        names: the reasons.
        tokens, targets: number of tokens and of targets in each example.
        cut: mask of the examples that were truncated.
    """

    table: pyarrow.Table
    reasons: NDArray[np.int64]
    names: list[str]
    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    cut: Mask


def prepare(tokenizer: Path, task: Task, thresholds: Thresholds) -> None:
    """Load the objects that ``encode`` needs in this process."""
    _state[:] = [(load_tokenizer(tokenizer), task, thresholds)]


#: The objects that ``encode`` needs, loaded once per process.
_state: list[tuple[Tokenizer, Task, Thresholds]] = []


def side_path(folder: Path, side: str, number: int) -> Path:
    return folder / f"{side}-{number:05d}.parquet"


def counts_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def encode(block: Block, work: Path, counted: Path) -> int:
    """Write a block's examples to ``work`` and their counts to ``counted``. Returns the text's size in bytes."""
    tokenizer, task, thresholds = _state[0]
    dropped: Counter[str] = Counter()
    counts_by_side: dict[str, Counter[str]] = {side: Counter() for side in SIDES}
    classes: dict[str, Counter[str]] = {side: Counter() for side in SIDES}
    partial = {side: atomic.temp_path(side_path(work, side, block.number)) for side in SIDES}
    writers = {side: parquet.ParquetWriter(path, task.schema, compression="zstd") for side, path in partial.items()}
    try:
        for group in block.groups:
            documents = read_shards.read_group(block.path, group, ["id", "text", "target", "digest"])
            held_out = thresholds.held_out(block.dataset, documents["digest"])
            examples = _examples(documents, tokenizer, task)
            dropped.update(examples.names[place] for place in examples.reasons[examples.reasons >= 0])
            for side, mask in zip(SIDES, (~held_out, held_out), strict=True):
                chosen = mask & (examples.reasons < 0)
                if chosen.any():
                    writers[side].write_table(examples.table.filter(pyarrow.array(chosen)))
                counts_by_side[side].update(_counts(examples, chosen, task))
                classes[side].update(_labels(examples, chosen, task))
    finally:
        for writer in writers.values():
            writer.close()
    for side, path in partial.items():
        if counts_by_side[side]["examples"]:
            atomic.rename_file(path, side_path(work, side, block.number))
        else:
            path.unlink()
    counts = {SIDES[side]: dict(counter) for side, counter in counts_by_side.items()}
    atomic.write_json(
        counts_path(counted, block.number),
        {
            **counts,
            "classes": {SIDES[side]: dict(counter) for side, counter in classes.items()},
            "dropped": dict(dropped),
        },
    )
    return block.size


def _counts(examples: _Examples, chosen: Mask, task: Task) -> dict[str, int]:
    counts = {
        "examples": int(chosen.sum()),
        "tokens": int(examples.tokens[chosen].sum()),
        "targets": int(examples.targets[chosen].sum()),
    }
    return counts | ({"cut": int((examples.cut & chosen).sum())} if task.kind == "sequence_classification" else {})


def _labels(examples: _Examples, chosen: Mask, task: Task) -> Iterator[str]:
    if task.kind == "sequence_classification":
        labels = examples.table["label"].filter(pyarrow.array(chosen)).to_pylist()
        yield from (task.classes[label] for label in labels)


def _examples(documents: pyarrow.Table, tokenizer: Tokenizer, task: Task) -> _Examples:
    """Convert documents into examples."""
    most = task.context_length
    ids, lengths = tokenizer.encode_column(documents["text"], end=False)
    cut = np.zeros(len(lengths), bool)
    faults: list[tuple[str, Mask]] = []
    labels_or_targets: Any
    if task.kind == "sequence_classification":
        cut = lengths > most
        ids, lengths = _shortened(ids, lengths, most)
        labels = trimmed(documents["target"].combine_chunks())
        labels_or_targets = compute.index_in(labels, pyarrow.array(task.classes, labels.type))
        targets = np.ones_like(lengths)
        faults.append((NO_TARGET, labels_or_targets.is_null().to_numpy(zero_copy_only=False)))
    else:
        target_ids, targets = tokenizer.encode_column(compute.fill_null(documents["target"], ""), end=False)
        labels_or_targets = _lists(target_ids, targets)
        faults.append((NO_TARGET, targets == 0))
        if task.kind == "seq2seq":
            # The model also predicts the end-of-text token.
            targets = targets + 1
        faults.append((TOO_LONG, (lengths > most) | (targets > most)))
        if task.kind == "token_classification":
            faults.append((OTHER_LENGTH, lengths != targets))
    faults.append((NO_TEXT, lengths == 0))
    reasons = np.full(len(lengths), -1)
    for place, (_, mask) in enumerate(faults):
        reasons[mask & (reasons < 0)] = place
    columns = [_lists(ids, lengths), labels_or_targets, documents["id"]]
    table = pyarrow.table(columns, names=task.schema.names).cast(task.schema)
    return _Examples(table, reasons, [name for name, _ in faults], lengths, targets, cut)


def trimmed(targets: pyarrow.Array) -> pyarrow.Array:
    """Strip whitespace around labels. Labels that are then empty become null."""
    stripped = compute.utf8_trim_whitespace(targets)
    return compute.if_else(compute.equal(stripped, ""), None, stripped)


def _shortened(
    ids: NDArray[np.int32], lengths: NDArray[np.int32], most: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the first ``most`` ids of each text, and the new lengths."""
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    places = np.arange(len(ids)) - np.repeat(starts, lengths)
    return ids[places < most], np.minimum(lengths, most)


def _lists(ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> pyarrow.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(ids))
