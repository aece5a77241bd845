"""The tokens stage: turn documents into training and validation shards of token ids.

The stage runs four steps in order:

1. ``held_out.py`` chooses the documents that are held out for validation.
2. ``encode.py`` encodes the documents in blocks. Several tasks can share this step.
3. Held-out documents that have too much text in common with training documents are dropped.
4. ``write_shards.py`` joins the blocks into shards, which are published.

``tokens/train-*.bin/.idx`` and ``val-*.bin/.idx`` are indexed datasets. Each sequence is one document and ends with the
end-of-text token. If there are several sources, each has its own folder. ``validation.parquet`` lists the held-out
documents, their overlap, and whether they were kept.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from artefacts import atomic, command_hints, lock, manifest, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.progress import bar
from artefacts.stage import Stage, open_stage
from configs.checks.data_guard import guard
from configs.identities import tokens_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe
from pipeline import parallel
from pipeline.parallel import ALL_TASKS, TaskShard
from tokenizer.train import require

if TYPE_CHECKING:
    from pipeline.tokens.encode import Block
    from pipeline.tokens.held_out import Thresholds

#: The reason for dropping a held-out document.
OVERLAP = "validation document that overlaps with training documents"


class _Build(NamedTuple):
    """The state shared by the steps.

    Attributes:
        recipe: the recipe.
        files: the document files of each source.
        stage: the opened stage.
        id_type: the numpy dtype name of the ids on disk.
        blocks: folder of the encoded blocks.
        held_out: file with the held-out documents' word sequences, or None if overlap is not measured.
        workers: number of processes.
    """

    recipe: Recipe
    files: dict[str, list[Path]]
    stage: Stage
    id_type: str
    blocks: Path
    held_out: Path | None
    workers: int


def build(recipe: Recipe, task_shard: TaskShard = ALL_TASKS) -> Manifest | None:
    """Encode the documents and publish the shards. If there are several tasks, only encode this task's blocks.

    Returns:
        The manifest, or None if the shards were up to date or if this was one of several tasks.

    Raises:
        RequestError: the model is trained on examples, the documents or the tokenizer are missing or damaged, or the
            documents cannot be split.
    """
    if recipe.task != "language_modeling":
        command = command_hints.make("examples")
        raise RequestError(f"model.family={recipe.family} is trained on examples, not on shards: run `{command}`")
    layout = RunLayout.of(recipe)
    documents = manifest.require(layout.documents, "data")
    tokenizer = require(recipe)
    inputs = {"documents": documents.fingerprint, "tokenizer": tokenizer.fingerprint}
    shared, check = task_shard != ALL_TASKS, guard(recipe, "tokens")
    with open_stage("tokens", layout.tokens, tokens_identity(recipe), inputs, shared, check) as stage:
        if stage.finished:
            return None
        repair_hints.check_sizes("documents", layout.documents)
        repair_hints.check_sizes("tokenizer", layout.tokenizer)
        work = _open_build(recipe, stage, documents, tokenizer)
        thresholds = _choose_held_out(work)
        if thresholds.forced and not shared:
            print(thresholds.forced_message())
        blocks = _encode(work, thresholds, task_shard)
        if shared:
            return None
        counts = _write_shards(work, blocks, _validation_masks(work, blocks))
        details = {
            "vocab_size": tokenizer.details["vocab_size"],
            "dtype": work.id_type,
            "tokenizer": tokenizer.fingerprint,
            "forced_validation": thresholds.forced,
        }
        versions = manifest.versions("sentencepiece", "tokenizers", "numpy", "pyarrow")
        return stage.publish(counts, versions, details)


def outcome(published: Manifest) -> str:
    """Return a line that describes what ``build`` published."""
    train, validation = published.counts["train"], published.counts["validation"]
    return (
        f"{train['tokens']:,} training tokens in {train['documents']:,} documents, "
        f"{validation['tokens']:,} validation tokens in {validation['documents']:,}; "
        f"{sum(published.counts['dropped'].values()):,} validation documents dropped for overlap with training text"
    )


def _open_build(recipe: Recipe, stage: Stage, documents: Manifest, tokenizer: Manifest) -> _Build:
    from pipeline.documents import read_shards
    from pipeline.tokens.indexed_dataset import id_type

    return _Build(
        recipe,
        read_shards.files_by_source(RunLayout.of(recipe).documents, documents),
        stage,
        id_type(tokenizer.details["vocab_size"]).name,
        stage.scratch / "blocks",
        stage.scratch / "held-out.npz" if recipe.data.tokens.max_overlap < 1 else None,
        parallel.count(recipe.data.workers),
    )


def _choose_held_out(work: _Build) -> "Thresholds":
    """Return the thresholds below which documents are held out.

    The first task that calls this function computes the thresholds and the held-out word sequences. The other tasks
    wait, and then read the files.
    """
    from pipeline.tokens.held_out import Thresholds, compute_thresholds, held_out_texts

    section = work.recipe.data.tokens
    path = work.stage.scratch / "thresholds.json"
    with lock.wait(work.stage.scratch / "thresholds"):
        if not path.exists():
            thresholds = compute_thresholds(work.files, work.recipe.run.seed, section.validation_fraction)
            if work.held_out:
                held_out_texts(work.files, thresholds, section.overlap_words, work.workers).save(work.held_out)
            atomic.write_json(path, thresholds._asdict())
        work.blocks.mkdir(exist_ok=True)
    return Thresholds(**atomic.read_json(path))


def _encode(work: _Build, thresholds: "Thresholds", task_shard: TaskShard) -> "list[Block]":
    """Encode a task's blocks that are not finished yet, and return the blocks of all tasks."""
    from pipeline.tokens import encode
    from tokenizer.registry import load_tokenizer

    blocks = encode.plan(work.files)
    selected = [block for block in blocks if task_shard.owns(block.number)]
    tasks = [(block, work.blocks) for block in selected if not encode.finished(work.blocks, block.number)]
    tokenizer = RunLayout.of(work.recipe).tokenizer
    # Compile the C code once, here, instead of in every process.
    load_tokenizer(tokenizer).prepare()
    prepare_with = (tokenizer, work.id_type, thresholds, work.held_out)
    total = sum(block.size for block in selected)
    initial = total - sum(block.size for block, _ in tasks)
    with bar(total, "B", "tokens", initial=initial) as progress:
        for size in parallel.ordered(encode.encode, tasks, work.workers, encode.prepare, prepare_with):
            progress.update(size)
    return blocks


def _validation_masks(work: _Build, blocks: "list[Block]") -> list[Any]:
    """Return a mask for each block that selects the held-out documents to keep. Writes ``validation.parquet``.

    Raises:
        RequestError: every held-out document overlaps too much with training documents.
    """
    import numpy as np
    import pyarrow

    from pipeline.tokens import encode
    from pipeline.tokens.overlap import HeldOut

    section = work.recipe.data.tokens
    ids_by_block = [encode.held_out_ids(work.blocks, block.number) for block in blocks]
    ids = np.concatenate(ids_by_block)
    overlap = np.zeros(len(ids))
    if work.held_out:
        held_out = HeldOut.load(work.held_out)
        for block in blocks:
            held_out.mark(encode.shared(work.blocks, block.number))
        overlap = held_out.overlap()
    kept = overlap <= section.max_overlap
    if not kept.any():
        raise RequestError(
            f"each of the {len(ids)} validation documents shares more than data.tokens.max_overlap "
            f"({section.max_overlap:g}) of its {section.overlap_words}-word sequences with training documents: "
            "raise data.tokens.validation_fraction or data.tokens.max_overlap"
        )
    columns = {"id": pyarrow.array(ids, pyarrow.string()), "overlap": overlap, "kept": kept}
    _write_parquet(work.stage.work / "validation.parquet", pyarrow.table(columns))
    return np.split(kept, np.cumsum([len(ids_of_block) for ids_of_block in ids_by_block])[:-1])


def _write_shards(work: _Build, blocks: "list[Block]", kept: list[Any]) -> dict[str, Any]:
    """Write the shards of all sources. Returns the counts for the manifest."""
    sources = {name: _write_source(work, name, blocks, kept) for name in work.files}
    totals = {
        side: {key: sum(source[side][key] for source in sources.values()) for key in counts}
        for side, counts in next(iter(sources.values())).items()
    }
    dropped = sum(len(mask) - int(mask.sum()) for mask in kept)
    return {**totals, **({"sources": sources} if len(sources) > 1 else {}), "dropped": {OVERLAP: dropped}}


def _write_source(work: _Build, name: str, blocks: "list[Block]", kept: list[Any]) -> dict[str, Any]:
    """Write the shards of one source. Returns its counts for each side."""
    from pipeline.tokens import encode, write_shards
    from pipeline.tokens.encode import TRAIN, VALIDATION

    folder = work.stage.work / name if len(work.files) > 1 else work.stage.work
    numbers = [block.number for block in blocks if block.dataset == name]
    counts = {}
    for side, label in ((TRAIN, "train"), (VALIDATION, "validation")):
        masks = {number: kept[number] for number in numbers} if side == VALIDATION else None
        lengths = ((number, encode.lengths(work.blocks, number, side)) for number in numbers)
        shards = list(write_shards.plan(folder, side, lengths, work.recipe.data.tokens.shard_tokens, masks))
        with bar(sum(shard.tokens for shard in shards), "token", f"{side} shards", disable=not shards) as progress:
            tasks = [(shard, work.blocks, work.id_type) for shard in shards]
            # Writing a few shards is faster than starting processes.
            for count in parallel.ordered(write_shards.write, tasks, min(work.workers, 1 + len(tasks) // 4)):
                progress.update(count)
        sizes = ((number, encode.sizes(work.blocks, number, side)) for number in numbers)
        counts[label] = {
            "documents": sum(shard.documents for shard in shards),
            "tokens": sum(shard.tokens for shard in shards),
            "bytes": sum(int((size[masks[number]] if masks else size).sum()) for number, size in sizes),
            "shards": len(shards),
        }
    return counts


def _write_parquet(path: Path, table: Any) -> None:
    import pyarrow.parquet as parquet

    partial = path.with_name(f".{path.name}.partial")
    parquet.write_table(table, partial, compression="zstd")
    partial.replace(path)
