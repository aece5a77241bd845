"""The examples stage for supervised models. The target of a text is one label per token, another text, or a class.

``examples/train-*.parquet`` and ``held-out-*.parquet`` have the columns ids, targets (ids) or label (class index), and
source (document id). Documents are split by their digests, as for token shards.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from artefacts import atomic, command_hints, fingerprint, manifest, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.progress import bar
from artefacts.stage import Stage, open_stage
from configs.checks.data_guard import guard
from configs.identities import documents_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe
from pipeline import parallel
from pipeline.examples.identity import examples_identity
from tokenizer.train import require

#: Maximum number of classes to list in a message.
_NAMED = 30


def build(recipe: Recipe) -> Manifest | None:
    """Build and publish the examples. Returns the manifest, or None if the examples were up to date.

    Raises:
        RequestError: the documents or the tokenizer are missing, damaged or built with another recipe; the number of
            classes is not ``model.classes``; or there are no training or no held-out examples.
    """
    layout = RunLayout.of(recipe)
    documents = manifest.require(layout.documents, "data")
    if fingerprint.of_value(documents.identity) != fingerprint.of_value(documents_identity(recipe)):
        command = command_hints.make("data")
        raise RequestError(
            f"{layout.documents} was built with another recipe (data section or run.seed): run `{command}`"
        )
    tokenizer = require(recipe)
    inputs = {"documents": documents.fingerprint, "tokenizer": tokenizer.fingerprint}
    with open_stage(
        "examples", layout.examples, examples_identity(recipe), inputs, check_replacing=guard(recipe, "examples")
    ) as stage:
        if stage.finished:
            return None
        repair_hints.check_sizes("documents", layout.documents)
        repair_hints.check_sizes("tokenizer", layout.tokenizer)
        from pipeline.documents import read_shards

        files = read_shards.files_by_source(layout.documents, documents)
        classes = _classes(recipe, files) if recipe.task == "sequence_classification" else ()
        counts, forced = _encode(recipe, files, classes, stage)
        _require_both(counts, recipe)
        details = {
            "task": recipe.task,
            "classes": list(classes),
            "vocab_size": tokenizer.details["vocab_size"],
            "forced_validation": forced,
        }
        versions = manifest.versions("sentencepiece", "tokenizers", "numpy", "pyarrow")
        return stage.publish(counts, versions, details)


def _classes(recipe: Recipe, files: dict[str, list[Path]]) -> tuple[str, ...]:
    """Return the class names, sorted.

    Raises:
        RequestError: their number is not ``model.classes``.
    """
    from pipeline.documents import read_shards
    from pipeline.examples.supervised_blocks import trimmed

    targets: set[str] = set()
    for paths in files.values():
        for path in paths:
            targets.update(
                trimmed(read_shards.read_column(path, "target").combine_chunks().unique()).drop_null().to_pylist()
            )
    names = tuple(sorted(targets))
    wanted = recipe.model.identity()["classes"]
    if len(names) != wanted:
        named = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        raise RequestError(
            f"model.classes is {wanted}, but the documents have {len(names):,} classes ({named}): set model.classes, "
            "or check the targets of data.source and which documents data.clean dropped (`make stats`)"
        )
    return names


def _encode(
    recipe: Recipe, files: dict[str, list[Path]], classes: tuple[str, ...], stage: Stage
) -> tuple[dict[str, Any], list[str]]:
    """Write the files. Returns the counts for the manifest and the sources from which a document had to be held out."""
    from pipeline.examples import supervised_blocks
    from pipeline.tokens import encode, held_out
    from tokenizer.registry import load_tokenizer

    fraction = recipe.data.tokens.validation_fraction
    thresholds = held_out.compute_thresholds(files, recipe.run.seed, fraction, by_text=True)
    if thresholds.forced:
        print(thresholds.forced_message())

    assert recipe.task != "language_modeling"
    task = supervised_blocks.Task(recipe.task, recipe.train.context_length, classes)
    planned = encode.plan(files)
    left = [block for block in planned if not supervised_blocks.counts_path(stage.scratch, block.number).exists()]
    folder = RunLayout.of(recipe).tokenizer
    # Compile the C code once, here, instead of in every process.
    load_tokenizer(folder).prepare()
    workers = parallel.count(recipe.data.workers)
    tasks = [(block, stage.work, stage.scratch) for block in left]
    done = sum(block.size for block in planned) - sum(block.size for block in left)
    with bar(done + sum(block.size for block in left), "B", "examples", initial=done) as progress:
        for size in parallel.ordered(
            supervised_blocks.encode, tasks, workers, supervised_blocks.prepare, (folder, task, thresholds)
        ):
            progress.update(size)
    counts = [atomic.read_json(supervised_blocks.counts_path(stage.scratch, block.number)) for block in planned]
    return _totals(counts, recipe.task), thresholds.forced


def _totals(blocks: list[dict[str, Any]], task: str) -> dict[str, Any]:
    from pipeline.examples.supervised_blocks import SIDES

    counts: dict[str, Any] = {}
    for side in SIDES.values():
        total = Counter[str]()
        for block in blocks:
            total.update(block[side])
        counts[side] = dict(total)
        if task == "sequence_classification":
            classes = sum((Counter(block["classes"][side]) for block in blocks), Counter[str]())
            counts[side]["classes"] = dict(sorted(classes.items()))
    counts["dropped"] = dict(sorted(sum((Counter(block["dropped"]) for block in blocks), Counter[str]()).items()))
    return counts


def _require_both(counts: dict[str, Any], recipe: Recipe) -> None:
    """Raise ``RequestError`` unless there are both training and held-out examples."""
    for side, what in (("train", "training"), ("held_out", "held-out")):
        if not counts[side].get("examples"):
            dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts["dropped"].items()) or "none"
            raise RequestError(
                f"no {what} example is left ({counts['train'].get('examples', 0):,} training examples; dropped: "
                f"{dropped}): add documents, or change data.tokens.validation_fraction or train.context_length "
                f"({recipe.train.context_length})"
            )
