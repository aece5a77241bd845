"""The examples stage: build chat examples for fine-tuning, some of them held out for evaluation.

``examples/train-*.parquet`` and ``held-out-*.parquet`` have the columns ids, labels (-100 where no loss is computed),
source, question and answer. For a stage that learns preferences, they have ids_chosen, labels_chosen, ids_rejected,
labels_rejected, source, question, chosen and rejected. ``rejected-*.parquet`` holds what was dropped or cut, with the
reason. ``pipeline/examples/split.py`` describes the split. The manifest records the chat template.
"""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from artefacts import fingerprint, manifest, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from artefacts.stage import open_stage
from configs.checks.data_guard import guard
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.data import SourceSection
from configs.schema.examples import ExamplesSection
from configs.schema.finetune import PAIRS, FinetuneSection
from pipeline import parallel
from pipeline.document import id_prefix
from pipeline.examples import conversations, reading
from pipeline.examples.conversations import Example, UnusableError
from pipeline.examples.formats import PEEKED, description, detected, mapped_formats, wanted_fields
from pipeline.examples.reading import KEY
from pipeline.examples.rendering import TOO_LONG, Losses, Row, rendered
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.storage.digests import digests_of
from tokenizer import chat_template
from tokenizer.chat_template import BUILT_IN, IGNORED, ChatTemplate
from tokenizer.registry import load_tokenizer

REPEATED = "the same conversation as an earlier example"
NO_QUESTION = f"a text without a question, for which {KEY}.rejected makes no answer"
NOT_SAMPLED = f"not sampled ({KEY}.max_examples)"
#: A stage's key for a limit -> the reason recorded for the examples that exceed it.
_LIMITS = {"max_length": TOO_LONG, "examples.max_examples": NOT_SAMPLED}


def build(recipe: Recipe, section: FinetuneSection) -> Manifest | None:
    """Build and publish a fine-tuning stage's examples. Returns the manifest, or None if they were up to date.

    Raises:
        RequestError: the tokenizer or tokens are missing, the template cannot be used, too many records are unusable,
            or too few examples are left.
    """
    layout, examples = RunLayout.of(recipe), section.examples
    folder, key = layout.examples_of(section.name), recipe.stage_key(section, "examples")
    inputs = {"tokenizer": manifest.require(layout.tokenizer, "tokenizer").fingerprint}
    if examples.template not in BUILT_IN:
        inputs["template"] = fingerprint.of_value(chat_template.source_of(examples.template, f"{key}.template"))
    identity, check = _identity(recipe, section), guard(recipe, "examples", section.name)
    with digests_of(folder) as digests:
        if examples.kind != "pydocs":
            inputs |= reading.inputs(examples, digests, key)
            section = _pinned(section, inputs)
        elif source := _pydocs(recipe):
            identity["packages"] = source.identity()["packages"]
            inputs["tokens"] = manifest.require(layout.tokens, "data").fingerprint
        with open_stage("examples", folder, identity, inputs, check_replacing=check) as stage:
            if stage.finished:
                return None
            repair_hints.check_sizes("tokenizer", layout.tokenizer)
            tokenizer = load_tokenizer(layout.tokenizer)
            template = chat_template.load(examples.template, tokenizer, f"{key}.template")
            losses = Losses()
            gathered, counts = _gather(recipe, section, losses)
            learned = _with_rejected(_unrepeated(gathered, losses), examples, losses)
            rows = rendered(learned, template, tokenizer, section, losses)
            counts |= _write(_sampled(rows, recipe.run.seed, section, losses), stage.work, recipe, section, losses)
            counts["dropped"] = dict(sorted(losses.dropped.items()))
            counts["altered"] = dict(sorted(losses.altered.items()))
            versions = manifest.versions("sentencepiece", "pyarrow", "jinja2")
            return stage.publish(counts, versions, {"template": _recorded(examples, template)})


def _identity(recipe: Recipe, section: FinetuneSection) -> dict[str, Any]:
    """Return the recipe keys that the examples depend on. Files are identified by their content."""
    files = ["path", "revision"] + (["template"] if section.examples.template not in BUILT_IN else [])
    clean = recipe.data.clean
    return {
        "examples": {key: value for key, value in section.examples.identity().items() if key not in files},
        "method": section.method,
        "max_length": section.max_length,
        "clean": {"unicode": clean.unicode, "fix_text": clean.fix_text},
        "seed": recipe.run.seed,
    }


def _pinned(section: FinetuneSection, inputs: dict[str, str]) -> FinetuneSection:
    """Return the section with the repository's recorded commit, which is read even if a branch moves meanwhile."""
    if "commit" not in inputs:
        return section
    examples = section.examples.model_copy(update={"revision": inputs["commit"]})
    return section.model_copy(update={"examples": examples})


def _recorded(section: ExamplesSection, template: ChatTemplate) -> dict[str, Any]:
    """Return what the manifest says about the template. Weights that learn from the examples need the same one."""
    name = section.template if section.template in BUILT_IN else Path(section.template).name
    return {"name": name, "source": template.source, "stop_ids": sorted(template.stop_ids)}


def _learns_preferences(section: FinetuneSection) -> bool:
    return section.method in PAIRS


def _gather(recipe: Recipe, section: FinetuneSection, losses: Losses) -> tuple[list[Example], dict[str, Any]]:
    """Return all usable examples, in source order, and the counts for the manifest."""
    from pipeline.cleaning.normalize import Normalizer

    normalizer = Normalizer(recipe.data.clean.unicode, recipe.data.clean.fix_text)
    if section.examples.kind == "pydocs":
        examples = _about_functions(recipe, normalizer.text, losses.dropped)
        counts: dict[str, Any] = {"candidates": len(examples) + sum(losses.dropped.values())}
        return examples, counts
    bad = BadInputs(hints={**reading.HINTS, **conversations.HINTS})
    reads_pairs = _learns_preferences(section) and section.examples.rejected is None
    key = recipe.stage_key(section, "examples")
    examples = read(section.examples, reads_pairs, normalizer.text, bad, losses, key)
    path = f"{key}.path: {section.examples.path}"
    if not bad.good and not bad.reasons:
        raise RequestError(f"{path} has no records: {reading.FILES}")
    bad.check(recipe.data.max_bad_fraction, path, key)
    counts = {"candidates": bad.good, "bad_inputs": dict(bad.reasons)}
    return examples, counts


def _with_rejected(examples: list[Example], section: ExamplesSection, losses: Losses) -> list[Example]:
    """Return the examples, with rejected answers if the recipe wants them to be made."""
    if section.rejected is None:
        return examples
    from pipeline.examples.verbose import with_verbose_answer

    for example in examples:
        if example.is_text:
            losses.drop(NO_QUESTION, example)
    answered = [example for example in examples if not example.is_text]
    return [with_verbose_answer(example, number) for number, example in enumerate(answered)]


def read(
    section: ExamplesSection,
    preferences: bool,
    normalized: Callable[[str], str],
    bad: BadInputs,
    losses: Losses,
    key: str = KEY,
) -> list[Example]:
    """Read all examples from files or from a repository, and print their formats.

    Args:
        section: the recipe's section.
        preferences: whether the examples must be preferences. Otherwise, only the chosen answers are used.
        normalized: a function to apply to every text.
        bad: counts the records that can be used and, by reason, those that cannot.
        losses: keeps the records that cannot be used.
        key: the section's key, for messages.

    Raises:
        RequestError: a file's records have no known format, or not the fields that the recipe names.
    """
    if preferences:
        section = section.model_copy(update={"format": "preference"})
    formats = mapped_formats(section, key)
    examples: list[Example] = []
    titles: dict[str, list[str]] = {}
    for name, records in reading.record_files(section, wanted_fields(formats), bad, key):
        peeked = list(islice(records, PEEKED))
        if not peeked:
            continue
        form = detected(name, peeked, section, formats, key)
        title = description(form, peeked)
        if form.name == "preference" and not preferences:
            title += ", of which only the chosen answers are learned"
        titles.setdefault(title, []).append(name)
        for record in chain(peeked, records):
            try:
                example = conversations.example(record.value, record.where, form, normalized)
            except UnusableError as error:
                reason = losses.bounded(str(error))
                bad.add(reason, record.where)
                losses.unusable(reason, record.where, record.value)
            else:
                bad.good += 1
                examples.append(example if preferences else example._replace(rejected=None))
    for title, names in titles.items():
        others = f" and {len(names) - 1} more files" if len(names) > 1 else ""
        print(f"examples: {title}{f' in {names[0]}{others}' if len(titles) > 1 else ''}")
    return examples


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
        examples.append(Example(item.source, messages, question, answer))
    return examples


def _pydocs(recipe: Recipe) -> SourceSection | None:
    """Return the recipe's pydocs source, or None. The source's validation documents must not become examples."""
    return next((section for section in recipe.data.named_sources.values() if section.kind == "pydocs"), None)


def _plain(answer: str) -> str:
    """Return the text with case and whitespace normalized, for comparison."""
    return " ".join(answer.casefold().split())


def _unrepeated(examples: list[Example], losses: Losses) -> list[Example]:
    """Return the examples without repeated conversations."""
    seen: set[str] = set()
    kept = []
    for example in examples:
        conversation = "\0".join(_plain(message["content"]) for message in example.conversation)
        if conversation in seen:
            losses.drop(REPEATED, example)
        else:
            seen.add(conversation)
            kept.append(example)
    return kept


def _sampled(rows: list[Row], seed: int, section: FinetuneSection, losses: Losses) -> list[Row]:
    """Return a sample of at most ``finetune.examples.max_examples`` rows."""
    import numpy as np

    from artefacts.hashing import keyed_hashes, smallest

    most = section.examples.max_examples
    if most is None or len(rows) <= most:
        return rows
    pairs = (f"{row.example.question}\0{row.example.answer}" for row in rows)
    chosen = smallest(keyed_hashes(seed, "examples", pairs), np.ones(len(rows), np.int64), most)
    losses.dropped[NOT_SAMPLED] = len(rows) - most
    return [row for row, taken in zip(rows, chosen, strict=True) if taken]


def _write(rows: list[Row], work: Path, recipe: Recipe, section: FinetuneSection, losses: Losses) -> dict[str, Any]:
    """Split and write the examples, and write the rejected ones. Returns the counts for both sides of the split."""
    from pipeline.examples.split import split
    from pipeline.examples.writing import write_rejected, write_side

    # All parts of an example are on the same side.
    origins = {id(row.origin): row.origin for row in rows}
    if len(origins) < 2:
        raise _too_few(len(origins), recipe, section, losses.dropped)
    fraction, key = section.examples.held_out_fraction, recipe.stage_key(section, "examples")
    of_origins, warning = split([origin.conversation for origin in origins.values()], recipe.run.seed, fraction, key)
    sides = dict(zip(origins, of_origins.tolist(), strict=True))
    if warning:
        print(warning, file=sys.stderr)
    counts: dict[str, Any] = {}
    for name, held_out in (("train", False), ("held-out", True)):
        side = [row for row in rows if sides[id(row.origin)] is held_out]
        write_side(work, name, side, _learns_preferences(section))
        counts[name.replace("-", "_")] = {
            "examples": len(side),
            "tokens": sum(len(ids) for row in side for ids in row.ids),
            "target_tokens": sum(label != IGNORED for row in side for labels in row.labels for label in labels),
        }
    write_rejected(work, losses.rejected)
    return counts


def _too_few(left: int, recipe: Recipe, section: FinetuneSection, dropped: Counter[str]) -> RequestError:
    """Return the error to raise for too few examples. It says why examples were dropped and what to change."""
    why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
    path = recipe.stage_key(section, "examples.path")
    hints = ["add text" if section.examples.kind == "pydocs" else f"add records to {path}"]
    hints += [f"raise {recipe.stage_key(section, key)}" for key, reason in _LIMITS.items() if dropped[reason]]
    return RequestError(
        f"{'only one chat example is' if left else 'no chat example is'} left{why and f' (dropped: {why})'}; "
        f"fine-tuning needs at least two, one of them held out: {' or '.join(hints)}"
    )
