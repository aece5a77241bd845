"""The tokens stage: documents to training and validation shards of token ids.

``tokens/train-*.bin/.idx`` and ``val-*.bin/.idx`` (of several sources: in a folder for each) are indexed datasets, one
document a sequence, each ended by the end-of-text token; ``validation.parquet`` lists the documents held out, with
their overlap and whether they were kept. Blocks of documents are encoded first, which several tasks can share; what
that leaves is put together into shards.
"""

from pathlib import Path
from typing import Any

from artefacts import atomic, command_hints, lock, manifest, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.progress import bar
from artefacts.stage import Stage, open_stage
from configs.checks.data_guard import guard
from configs.identities import tokens_identity
from configs.run_layout import RunLayout
from configs.schema import Recipe
from pipeline import parallel as processes
from pipeline.parallel import WHOLE, Share
from tokenizer.train import require

#: Why a held-out document is in no shard.
OVERLAP = "validation document that training documents contain"


def build(recipe: Recipe, share: Share = WHOLE) -> Manifest | None:
    """Split and tokenise; and (not for one task of several) put the shards together and publish them.

    Returns:
        The manifest; None where the shards are up to date, or the share's blocks are encoded.

    Raises:
        RequestError: the model learns from examples; documents or tokenizer are missing or damaged, or the documents
            cannot be split.
    """
    if recipe.task != "language_modeling":
        command = command_hints.make("examples")
        raise RequestError(f"model.family={recipe.family} learns from examples, not from shards: run `{command}`")
    layout = RunLayout.of(recipe)
    documents = manifest.require(layout.documents, "data")
    tokenizer = require(recipe)
    inputs = {"documents": documents.fingerprint, "tokenizer": tokenizer.fingerprint}
    check = guard(recipe, "tokens")
    with open_stage("tokens", layout.tokens, tokens_identity(recipe), inputs, share != WHOLE, check) as stage:
        if stage.finished:
            return None
        repair_hints.check_sizes("documents", layout.documents)
        repair_hints.check_sizes("tokenizer", layout.tokenizer)
        from pipeline.documents import read_shards
        from pipeline.tokens.indexed_dataset import id_type

        files = read_shards.of_sources(layout.documents, documents)
        vocab_size = tokenizer.details["vocab_size"]
        work = _Work(recipe, files, stage, id_type(vocab_size).name)
        work.settle()
        if work.limits.forced and share == WHOLE:
            names = ", ".join(work.limits.forced)
            print(f"{names}: no document falls to validation by its hash: the one with the smallest hash is held out")
        work.encode(share)
        if share != WHOLE:
            return None
        counts = work.assemble()
        details = {
            "vocab_size": vocab_size,
            "dtype": id_type(vocab_size).name,
            "tokenizer": tokenizer.fingerprint,
            "forced_validation": work.limits.forced,
        }
        versions = manifest.versions("sentencepiece", "tokenizers", "numpy", "pyarrow")
        return stage.publish(counts, versions, details)


class _Work:
    """One building of the shards; its steps in order are ``settle``, ``encode`` and ``assemble``."""

    def __init__(self, recipe: Recipe, files: dict[str, list[Path]], stage: Stage, id_kind: str) -> None:
        self._recipe, self._files, self._stage, self._id_kind = recipe, files, stage, id_kind
        self._workers = processes.count(recipe.data.workers)
        self._encoded = stage.scratch / "blocks"
        self._held_out = stage.scratch / "held-out.npz" if recipe.data.tokens.max_overlap < 1 else None

    def settle(self) -> None:
        """Find out, once for all tasks, which documents are held out and what their word sequences are."""
        from pipeline.tokens.held_out import Limits, held_out_texts, settle

        section = self._recipe.data.tokens
        path = self._stage.scratch / "limits.json"
        with lock.wait(self._stage.scratch / "limits"):
            if not path.exists():
                limits = settle(self._files, self._recipe.run.seed, section.validation_fraction)
                if self._held_out:
                    held_out_texts(self._files, limits, section.overlap_words, self._workers).save(self._held_out)
                atomic.write_json(path, limits._asdict())
            self._encoded.mkdir(exist_ok=True)
        self.limits = Limits(**atomic.read_json(path))

    def encode(self, share: Share) -> None:
        """Encode the share's blocks; those that an earlier start finished are kept."""
        from pipeline.tokens import encode
        from tokenizer.registry import load_tokenizer

        self._blocks = encode.plan(self._files)
        mine = [block for block in self._blocks if share.owns(block.number)]
        todo = [(block, self._encoded) for block in mine if not encode.finished(self._encoded, block.number)]
        tokenizer = RunLayout.of(self._recipe).tokenizer
        # What it compiles for its speed is compiled once, here.
        load_tokenizer(tokenizer).prepare()
        begin = (tokenizer, self._id_kind, self.limits, self._held_out)
        done = sum(block.size for block in mine) - sum(block.size for block, _ in todo)
        with bar(done + sum(block.size for block, _ in todo), "B", "tokens", initial=done) as progress:
            for size in processes.ordered(encode.encode, todo, self._workers, encode.prepare, begin):
                progress.update(size)

    def assemble(self) -> dict[str, Any]:
        """Put the shards together; returns the manifest's counts."""
        kept = self._judge()
        by_source = {name: self._assemble_source(name, kept) for name in self._files}
        totals = {
            side: {key: sum(own[side][key] for own in by_source.values()) for key in counts}
            for side, counts in next(iter(by_source.values())).items()
        }
        left_out = sum(len(mask) - int(mask.sum()) for mask in kept)
        return {**totals, **({"sources": by_source} if len(by_source) > 1 else {}), "dropped": {OVERLAP: left_out}}

    def _judge(self) -> list[Any]:
        """For each block the mask of its held-out documents that validate; lists all of them in a file of the stage.

        Raises:
            RequestError: training text contains too much of every one of them.
        """
        import numpy as np
        import pyarrow

        from pipeline.tokens import encode
        from pipeline.tokens.overlap import HeldOut

        section = self._recipe.data.tokens
        each = [encode.held_out_ids(self._encoded, block.number) for block in self._blocks]
        ids = np.concatenate(each)
        overlap = np.zeros(len(ids))
        if self._held_out:
            compared = HeldOut.load(self._held_out)
            for block in self._blocks:
                compared.mark(encode.shared(self._encoded, block.number))
            overlap = compared.overlap()
        kept = overlap <= section.max_overlap
        if not kept.any():
            raise RequestError(
                f"every validation document ({len(ids)}) shares more than data.tokens.max_overlap "
                f"({section.max_overlap:g}) of its {section.overlap_words}-word sequences with training documents: "
                "raise data.tokens.validation_fraction or data.tokens.max_overlap"
            )
        columns = {"id": pyarrow.array(ids, pyarrow.string()), "overlap": overlap, "kept": kept}
        _write_parquet(self._stage.work / "validation.parquet", pyarrow.table(columns))
        return np.split(kept, np.cumsum([len(own) for own in each])[:-1])

    def _assemble_source(self, name: str, kept: list[Any]) -> dict[str, Any]:
        """Write one source's shards; their counts by side."""
        from pipeline.tokens import encode, write_shards
        from pipeline.tokens.encode import TRAIN, VALIDATION

        folder = self._stage.work / name if len(self._files) > 1 else self._stage.work
        own = [block.number for block in self._blocks if block.dataset == name]
        counts = {}
        for side, label in ((TRAIN, "train"), (VALIDATION, "validation")):
            masks = {number: kept[number] for number in own} if side == VALIDATION else None
            lengths = ((number, encode.lengths(self._encoded, number, side)) for number in own)
            plan = list(write_shards.plan(folder, side, lengths, self._recipe.data.tokens.shard_tokens, masks))
            with bar(sum(shard.tokens for shard in plan), "token", f"{side} shards", disable=not plan) as progress:
                tasks = [(shard, self._encoded, self._id_kind) for shard in plan]
                # A few shards are written sooner than processes start.
                for count in processes.ordered(write_shards.write, tasks, min(self._workers, 1 + len(tasks) // 4)):
                    progress.update(count)
            sizes = ((number, encode.sizes(self._encoded, number, side)) for number in own)
            counts[label] = {
                "documents": sum(shard.documents for shard in plan),
                "tokens": sum(shard.tokens for shard in plan),
                "bytes": sum(int((size[masks[number]] if masks else size).sum()) for number, size in sizes),
                "shards": len(plan),
            }
        return counts


def _write_parquet(path: Path, table: Any) -> None:
    import pyarrow.parquet as parquet

    beside = path.with_name(f".{path.name}.partial")
    parquet.write_table(table, beside, compression="zstd")
    beside.replace(path)
