"""The examples stage: build chat examples for fine-tuning, some of them held out for evaluation.

``examples/train-*.parquet`` and ``held-out-*.parquet`` have the columns ids, labels (-100 where no loss is computed),
source, question and answer. ``pipeline/examples/split.py`` describes the split.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from artefacts import manifest, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.progress import bar
from artefacts.stage import open_stage
from configs.checks.data_guard import guard
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.data import SourceSection
from configs.schema.finetune import FinetuneSection
from pipeline import parallel
from pipeline.document import id_prefix
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.storage.digests import digests_of

TOO_LONG = "longer than finetune.max_length"
REPEATED = "the same conversation as an earlier example"
NOT_SAMPLED = "not sampled (finetune.examples.max_examples)"
#: Recipe key of a limit -> the reason recorded for the examples that exceed it.
_LIMITS = {"finetune.max_length": TOO_LONG, "finetune.examples.max_examples": NOT_SAMPLED}


class Example(NamedTuple):
    """A conversation, its last question and answer, and its origin."""

    messages: list[dict[str, str]]
    question: str
    answer: str
    source: str


def build(recipe: Recipe, section: FinetuneSection) -> Manifest | None:
    """Build and publish a fine-tuning stage's examples. Returns the manifest, or None if they were up to date.

    Raises:
        RequestError: the tokenizer or tokens are missing, too many records are unusable, or too few examples are left.
    """
    layout = RunLayout.of(recipe)
    folder = layout.examples_of(section.name)
    tokenizer = manifest.require(layout.tokenizer, "tokenizer")
    inputs = {"tokenizer": tokenizer.fingerprint}
    examples = {key: value for key, value in section.examples.identity().items() if key != "path"}
    clean = recipe.data.clean
    identity: dict[str, Any] = {
        "examples": examples,
        "max_length": section.max_length,
        "clean": {"unicode": clean.unicode, "fix_text": clean.fix_text},
        "seed": recipe.run.seed,
    }
    check = guard(recipe, "examples", folder)
    with digests_of(folder) as digests:
        if section.examples.kind == "instructions":
            from pipeline.examples import instructions

            inputs |= instructions.fingerprints(str(section.examples.path), digests)
        elif source := _pydocs(recipe):
            identity["packages"] = source.identity()["packages"]
            inputs["tokens"] = manifest.require(layout.tokens, "data").fingerprint
        with open_stage("examples", folder, identity, inputs, check_replacing=check) as stage:
            if stage.finished:
                return None
            repair_hints.check_sizes("tokenizer", layout.tokenizer)
            dropped: Counter[str] = Counter()
            examples_read, counts = _gather(recipe, section, dropped)
            counts |= _write(_unrepeated(examples_read, dropped), stage.work, recipe, section, dropped)
            counts["dropped"] = dict(sorted(dropped.items()))
            return stage.publish(counts, manifest.versions("sentencepiece", "pyarrow"))


def _gather(recipe: Recipe, section: FinetuneSection, dropped: Counter[str]) -> tuple[list[Example], dict[str, Any]]:
    """Return all usable examples, in source order, and the counts for the manifest."""
    from pipeline.cleaning.normalize import Normalizer

    normalizer = Normalizer(recipe.data.clean.unicode, recipe.data.clean.fix_text)
    if section.examples.kind == "pydocs":
        examples = _about_functions(recipe, normalizer.text, dropped)
        return examples, {"candidates": len(examples) + sum(dropped.values())}
    from pipeline.examples import instructions

    path = str(section.examples.path)
    bad = BadInputs(hints=instructions.HINTS)
    examples = []
    for where, messages in instructions.conversations(instructions.find(path), normalizer.text, bad):
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        questions = [message["content"] for message in messages if message["role"] == "user"]
        examples.append(Example(messages, questions[-1] if questions else "", answers[-1], where))
    if not bad.good and not bad.reasons:
        raise RequestError(f"finetune.examples.path: {path} has no records: {instructions.FORMATS}")
    bad.check(recipe.data.max_bad_fraction, f"finetune.examples.path: {path}")
    return examples, {"candidates": bad.good, "bad_inputs": dict(bad.reasons)}


def _about_functions(recipe: Recipe, normalized: Callable[[str], str], dropped: Counter[str]) -> list[Example]:
    import pyarrow.parquet as parquet

    from pipeline.examples.pydocs_questions import questions
    from pipeline.sources.pydocs import PydocsSource

    section = _pydocs(recipe)
    # Questions need a document's first line, which documents with targets don't have.
    source = replace(PydocsSource.of(section or SourceSection(), recipe), target_field=None)
    held_out: frozenset[str] = frozenset()
    if section:
        path = RunLayout.of(recipe).tokens / "validation.parquet"
        with repair_hints.reading("tokens", path):
            table = parquet.read_table(path, columns=["id"])
        prefix = id_prefix(recipe, next(name for name, of in recipe.data.named_sources.items() if of is section))
        ids = (identifier for identifier in table["id"].to_pylist() if identifier.startswith(prefix))
        held_out = frozenset(identifier.removeprefix(prefix) for identifier in ids)
    documents = source.documents(parallel.count(recipe.data.workers))
    examples = []
    for item in questions(documents, held_out, recipe.run.seed, dropped):
        question, answer = normalized(item.question), normalized(item.answer)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        examples.append(Example(messages, question, answer, item.source))
    return examples


def _pydocs(recipe: Recipe) -> SourceSection | None:
    """Return the recipe's pydocs source, or None. The source's validation documents must not become examples."""
    return next((section for section in recipe.data.named_sources.values() if section.kind == "pydocs"), None)


def _plain(answer: str) -> str:
    """Return the text with case and whitespace normalized, for comparison."""
    return " ".join(answer.casefold().split())


def _unrepeated(examples: list[Example], dropped: Counter[str]) -> list[Example]:
    """Return the examples without repeated conversations."""
    seen: set[str] = set()
    kept = []
    for example in examples:
        conversation = "\0".join(_plain(message["content"]) for message in example.messages)
        if conversation in seen:
            dropped[REPEATED] += 1
        else:
            seen.add(conversation)
            kept.append(example)
    return kept


def _write(
    examples: list[Example], work: Path, recipe: Recipe, section: FinetuneSection, dropped: Counter[str]
) -> dict[str, Any]:
    """Render, sample, split and write the examples. Returns the counts for both sides of the split."""
    from pipeline.examples.split import split
    from tokenizer import chat_template

    rows = _sampled(_rendered(examples, recipe, section.max_length, dropped), recipe.run.seed, section, dropped)
    if len(rows) < 2:
        raise _too_few(len(rows), section, dropped)
    held_out, warning = split([row["messages"] for row in rows], recipe.run.seed, section.examples.held_out_fraction)
    if warning:
        print(warning, file=sys.stderr)
    counts: dict[str, Any] = {}
    for name, mask in (("train", ~held_out), ("held-out", held_out)):
        side = [row for row, taken in zip(rows, mask, strict=True) if taken]
        _write_side(work, name, side)
        counts[name.replace("-", "_")] = {
            "examples": len(side),
            "tokens": sum(len(row["ids"]) for row in side),
            "target_tokens": sum(sum(label != chat_template.IGNORED for label in row["labels"]) for row in side),
        }
    return counts


def _rendered(examples: list[Example], recipe: Recipe, max_length: int, dropped: Counter[str]) -> list[dict[str, Any]]:
    """Return the examples that are not too long, with their ids and labels."""
    from tokenizer import chat_template
    from tokenizer.registry import load_tokenizer

    tokenizer = load_tokenizer(RunLayout.of(recipe).tokenizer)
    rows = []
    with bar(len(examples), "example", "examples") as progress:
        for example in examples:
            ids, labels = chat_template.render(example.messages, tokenizer)
            progress.update()
            if len(ids) > max_length:
                dropped[TOO_LONG] += 1
            else:
                rows.append({"ids": ids, "labels": labels, **example._asdict()})
    return rows


def _sampled(
    rows: list[dict[str, Any]], seed: int, section: FinetuneSection, dropped: Counter[str]
) -> list[dict[str, Any]]:
    """Return a sample of at most ``finetune.examples.max_examples`` rows."""
    import numpy as np

    from artefacts.hashing import keyed_hashes, smallest

    most = section.examples.max_examples
    if most is None or len(rows) <= most:
        return rows
    hashes = keyed_hashes(seed, "examples", (f"{row['question']}\0{row['answer']}" for row in rows))
    chosen = smallest(hashes, np.ones(len(rows), np.int64), most)
    dropped[NOT_SAMPLED] = len(rows) - most
    return [row for row, taken in zip(rows, chosen, strict=True) if taken]


def _too_few(left: int, section: FinetuneSection, dropped: Counter[str]) -> RequestError:
    """Return the error to raise for too few examples. It says why examples were dropped and what to change."""
    why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
    hints = ["add text" if section.examples.kind == "pydocs" else "add records to finetune.examples.path"]
    hints += [f"raise {key}" for key, reason in _LIMITS.items() if dropped[reason]]
    return RequestError(
        f"{'only one chat example is' if left else 'no chat example is'} left{why and f' (dropped: {why})'}; "
        f"fine-tuning needs at least two, one of them held out: {' or '.join(hints)}"
    )


def _write_side(work: Path, name: str, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    schema = pyarrow.schema(
        [(column, pyarrow.list_(pyarrow.int32())) for column in ("ids", "labels")]
        + [(column, pyarrow.string()) for column in ("source", "question", "answer")]
    )
    target = work / f"{name}-00000.parquet"
    partial = target.with_name(f".{target.name}.partial")
    with parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
        for start in range(0, len(rows), 10_000):
            writer.write_table(pyarrow.Table.from_pylist(rows[start : start + 10_000], schema))
    os.replace(partial, target)
