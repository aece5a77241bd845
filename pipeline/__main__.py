"""The data stages: ``python -m pipeline VERB --recipe R [section.key=value ...]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from configs.checks import unread_keys
from configs.command import DONE, FAILED, add_recipe_arguments, parse, read_recipe, run
from configs.run_layout import RunLayout
from configs.schema import Recipe
from pipeline.parallel import ALL_TASKS, TaskShard

# Each stage is imported only when it runs, so printing "up to date" doesn't import numpy, Arrow or SentencePiece.


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (_, description) in _VERBS.items():
        verb = verbs.add_parser(name, help=description, description=description, allow_abbrev=False)
        add_recipe_arguments(verb)
        if name in _SHARED:
            verb.add_argument("--tasks", type=int, metavar="N", help="divide the work between N tasks")
            verb.add_argument("--task", type=int, metavar="I", help="do the work of task I (0 to N-1)")
        if name == "rejected":
            verb.add_argument("--reason", metavar="TEXT", help="only those whose reason contains this text")
            verb.add_argument("--limit", type=int, default=10, metavar="N", help="show at most N of them (default: 10)")
            verb.add_argument(
                "--examples",
                nargs="?",
                const="",
                metavar="STAGE",
                help="show the chat examples of a fine-tuning stage instead (default: of the last stage)",
            )
        if name == "ingest":
            verb.add_argument(
                "--limit", type=int, metavar="N", help="preview the first N documents of each source and write nothing"
            )
    options = parse(parser, arguments)
    recipe = read_recipe(options)
    unread_keys.check(options.verb, recipe, options.overrides)
    return _VERBS[options.verb][0](recipe, options)


def _task_shard(options: argparse.Namespace) -> TaskShard:
    """Return the task shard selected by ``--task`` and ``--tasks``."""
    if options.task is None and options.tasks is None:
        return ALL_TASKS
    if options.task is None or options.tasks is None or not 0 <= options.task < options.tasks:
        raise RequestError("--tasks N and --task I go together, I from 0 to N-1")
    return TaskShard(options.task, options.tasks)


def _run(recipe: Recipe, options: argparse.Namespace) -> int:
    if recipe.tokenizer.is_ready:
        from tokenizer import pretrained

        # Building the documents can take hours, so report a wrong path first.
        pretrained.check(recipe)
    if recipe.task != "language_modeling":
        # Examples need train.context_length, so report a missing train section before building the documents.
        _ = recipe.train
    _build_documents(recipe, ALL_TASKS)
    _train_tokenizer(recipe)
    if recipe.task != "language_modeling":
        return _examples(recipe, options)
    _build_tokens(recipe, ALL_TASKS)
    return _pack(recipe, options) if recipe.packs else DONE


def _ingest(recipe: Recipe, options: argparse.Namespace) -> int:
    if options.limit is not None:
        if options.limit < 1 or _task_shard(options) != ALL_TASKS:
            raise RequestError("--limit must be at least 1, and cannot be used with --task")
        from pipeline.reports.preview import preview

        lines: list[str] | None = preview(recipe, options.limit)
    else:
        from pipeline.documents import stage as documents

        lines = documents.ingest(recipe, _task_shard(options))
    print("\n".join([f"{RunLayout.of(recipe).documents}: up to date"] if lines is None else lines))
    return DONE


def _dedup(recipe: Recipe, options: argparse.Namespace) -> int:
    from pipeline.documents import stage as documents

    task_shard = _task_shard(options)
    is_resolved = documents.find_duplicates(recipe, task_shard)
    folder = RunLayout.of(recipe).documents
    print(f"{folder}: duplicates are resolved" if is_resolved else f"{folder}: {_label(task_shard)}: compared")
    return DONE


def _clean(recipe: Recipe, options: argparse.Namespace) -> int:
    return _build_documents(recipe, _task_shard(options))


def _build_documents(recipe: Recipe, task_shard: TaskShard) -> int:
    from pipeline.documents import stage as documents

    published = documents.build(recipe, task_shard)
    folder = RunLayout.of(recipe).documents
    if published is None:
        print(f"{folder}: up to date" if task_shard == ALL_TASKS else f"{folder}: {_label(task_shard)}: written")
    else:
        print("\n".join(documents.outcome(published, recipe)))
    return DONE


def _label(task_shard: TaskShard) -> str:
    return f"task {task_shard.task} of {task_shard.tasks}"


def _train_tokenizer(recipe: Recipe) -> None:
    from tokenizer.train import outcome, train

    print(outcome(train(recipe), recipe))


def _tokenize(recipe: Recipe, options: argparse.Namespace) -> int:
    return _build_tokens(recipe, _task_shard(options))


def _build_tokens(recipe: Recipe, task_shard: TaskShard) -> int:
    from pipeline.tokens import stage as tokens

    published = tokens.build(recipe, task_shard)
    folder = RunLayout.of(recipe).tokens
    if published is None:
        print(f"{folder}: up to date" if task_shard == ALL_TASKS else f"{folder}: {_label(task_shard)}: encoded")
    else:
        print(f"{folder}: {tokens.outcome(published)}")
    return DONE


def _pack(recipe: Recipe, options: argparse.Namespace) -> int:
    from pipeline.tokens import packing

    print(packing.outcome(packing.build(recipe), recipe))
    return DONE


def _examples(recipe: Recipe, options: argparse.Namespace) -> int:
    layout = RunLayout.of(recipe)
    if recipe.task != "language_modeling":
        from pipeline.examples import supervised

        _print_examples(layout.examples, supervised.build(recipe))
        return DONE
    from pipeline.examples import chat

    if not recipe.finetune:
        raise RequestError("the recipe has no finetune section, which describes the examples: add one")
    for stage in recipe.finetune:
        _print_examples(layout.examples_of(stage.name), chat.build(recipe, stage))
    return DONE


def _print_examples(folder: Path, published: Manifest | None) -> None:
    if published is None:
        print(f"{folder}: up to date")
    else:
        train, held_out = published.counts["train"], published.counts["held_out"]
        reasons = {reason: count for reason, count in published.counts["dropped"].items() if count}
        why = f" ({', '.join(f'{count:,} {reason}' for reason, count in reasons.items())})" if reasons else ""
        altered = "".join(f"; {count:,} {what}" for what, count in published.counts.get("altered", {}).items())
        print(
            f"{folder}: {train['examples']:,} training examples, {held_out['examples']:,} held out; "
            f"{sum(reasons.values()):,} dropped{why}{altered}"
        )


def _verify(recipe: Recipe, options: argparse.Namespace) -> int:
    from pipeline.reports.verify import verify

    intact, faults = verify(recipe, options.recipe)
    for line in intact:
        print(line)
    for line in faults:
        print(line, file=sys.stderr)
    return FAILED if faults else DONE


def _rejected(recipe: Recipe, options: argparse.Namespace) -> int:
    from pipeline.reports.rejected import rejected

    stage = options.examples
    if stage is not None:
        if not recipe.finetune:
            raise RequestError("--examples: the recipe has no finetune section")
        stage = recipe.stage(stage or recipe.finetune[-1].name).name
    for line in rejected(recipe, options.reason, options.limit, stage):
        print(line)
    return DONE


def _stats(recipe: Recipe, options: argparse.Namespace) -> int:
    from pipeline.reports.stats import stats

    lines, page = stats(recipe)
    print("\n".join([*lines, f"plots: {page}"]))
    return DONE


_VERBS = {
    "run": (
        _run,
        "run all data stages: documents, tokenizer, and token shards (or the examples of a supervised model)",
    ),
    "ingest": (_ingest, "read and clean the sources, and print tables of the documents"),
    "dedup": (_dedup, "find duplicates among the documents: exact duplicates, long lines, near duplicates"),
    "clean": (_clean, "build the cleaned documents: do what ingest and dedup have not done, and write the files"),
    "tokenize": (_tokenize, "encode the documents into token shards, with the run's tokenizer"),
    "pack": (_pack, "build the index of packed samples for train.packing=best_fit (run does it too)"),
    "examples": (_examples, "build chat examples for fine-tuning, or the examples of a supervised model"),
    "verify": (_verify, "check every artefact and checkpoint, and print how to repair damaged ones"),
    "rejected": (_rejected, "show dropped documents or chat examples: counts by reason, and the first of them"),
    "stats": (_stats, "print a table of documents, bytes and tokens, and write a page with plots"),
}

#: Verbs whose work can be split across tasks.
_SHARED = ("ingest", "dedup", "clean", "tokenize")

if __name__ == "__main__":
    run(main, restartable=True)
