"""The data stages: ``python -m pipeline VERB --recipe R [section.key=value ...]``."""

import argparse
import sys
from collections.abc import Sequence

from artefacts.errors import RequestError
from configs.checks import unread_keys
from configs.command import DONE, FAILED, add_recipe_arguments, parse, read_recipe, run
from configs.run_layout import RunLayout
from configs.schema import Recipe
from pipeline.parallel import WHOLE, Share

# Stages import what they need when they are asked for: to say "up to date" takes no numpy, no Arrow, no SentencePiece.


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (_, does) in _VERBS.items():
        verb = verbs.add_parser(name, help=does, description=does, allow_abbrev=False)
        add_recipe_arguments(verb)
        if name in _SHARED:
            verb.add_argument("--tasks", type=int, metavar="N", help="share the work between N tasks")
            verb.add_argument("--task", type=int, metavar="I", help="do the share of task I (0 to N-1)")
        if name == "rejected":
            verb.add_argument("--reason", metavar="WORDS", help="only those whose reason contains these words")
            verb.add_argument("--limit", type=int, default=10, metavar="N", help="show N documents at most (10)")
        if name == "ingest":
            verb.add_argument(
                "--limit", type=int, metavar="N", help="try the first N documents of each source, leaving no trace"
            )
    chosen = parse(parser, arguments)
    recipe = read_recipe(chosen)
    unread_keys.check(chosen.verb, recipe, chosen.overrides)
    return _VERBS[chosen.verb][0](recipe, chosen)


def _share(chosen: argparse.Namespace) -> Share:
    """The share that ``--task`` and ``--tasks`` ask for."""
    if chosen.task is None and chosen.tasks is None:
        return WHOLE
    if chosen.task is None or chosen.tasks is None or not 0 <= chosen.task < chosen.tasks:
        raise RequestError("--tasks N and --task I go together, I from 0 to N-1")
    return Share(chosen.task, chosen.tasks)


def _run(recipe: Recipe, chosen: argparse.Namespace) -> int:
    if recipe.tokenizer.is_ready:
        from tokenizer import pretrained

        # The documents may take hours, and a slip in its path is told at once.
        pretrained.check(recipe)
    if recipe.task != "language_modeling":
        # Examples are made for a context length, and that there is none is told at once.
        _ = recipe.train
    _build_documents(recipe, WHOLE)
    _train_tokenizer(recipe)
    if recipe.task != "language_modeling":
        return _examples(recipe, chosen)
    _build_tokens(recipe, WHOLE)
    return _pack(recipe, chosen) if recipe.packs else DONE


def _ingest(recipe: Recipe, chosen: argparse.Namespace) -> int:
    if chosen.limit is not None:
        if chosen.limit < 1 or _share(chosen) != WHOLE:
            raise RequestError("--limit takes a number of documents from 1, and no --task")
        from pipeline.reports.preview import preview

        lines: list[str] | None = preview(recipe, chosen.limit)
    else:
        from pipeline.documents import stage as documents

        lines = documents.ingest(recipe, _share(chosen))
    print("\n".join([f"{RunLayout.of(recipe).documents}: up to date"] if lines is None else lines))
    return DONE


def _dedup(recipe: Recipe, chosen: argparse.Namespace) -> int:
    from pipeline.documents import stage as documents

    share = _share(chosen)
    settled = documents.find_duplicates(recipe, share)
    folder = RunLayout.of(recipe).documents
    print(f"{folder}: duplicates are settled" if settled else f"{folder}: {_done(share)} compared")
    return DONE


def _clean(recipe: Recipe, chosen: argparse.Namespace) -> int:
    return _build_documents(recipe, _share(chosen))


def _build_documents(recipe: Recipe, share: Share) -> int:
    from pipeline.documents import stage as documents

    made = documents.build(recipe, share)
    folder = RunLayout.of(recipe).documents
    if made is None:
        print(f"{folder}: up to date" if share == WHOLE else f"{folder}: {_done(share)} written")
    else:
        print("\n".join(documents.outcome(made, recipe)))
    return DONE


def _done(share: Share) -> str:
    return f"task {share.task} of {share.tasks}: its share is"


def _train_tokenizer(recipe: Recipe) -> None:
    from tokenizer.train import outcome, train

    print(outcome(train(recipe), recipe))


def _tokenize(recipe: Recipe, chosen: argparse.Namespace) -> int:
    return _build_tokens(recipe, _share(chosen))


def _build_tokens(recipe: Recipe, share: Share) -> int:
    from pipeline.tokens import stage as tokens

    made = tokens.build(recipe, share)
    folder = RunLayout.of(recipe).tokens
    if made is None:
        print(f"{folder}: up to date" if share == WHOLE else f"{folder}: {_done(share)} encoded")
    else:
        train, validation = made.counts["train"], made.counts["validation"]
        print(
            f"{folder}: {train['tokens']:,} training tokens in {train['documents']:,} documents, "
            f"{validation['tokens']:,} validation tokens in {validation['documents']:,}; "
            f"{sum(made.counts['dropped'].values()):,} left out of validation for overlap"
        )
    return DONE


def _pack(recipe: Recipe, chosen: argparse.Namespace) -> int:
    from pipeline.tokens import packing

    print(packing.outcome(packing.build(recipe), recipe))
    return DONE


def _examples(recipe: Recipe, chosen: argparse.Namespace) -> int:
    if recipe.task == "language_modeling":
        from pipeline.examples.chat import build
    else:
        from pipeline.examples.supervised import build

    made = build(recipe)
    folder = RunLayout.of(recipe).examples
    if made is None:
        print(f"{folder}: up to date")
    else:
        train, held_out = made.counts["train"], made.counts["held_out"]
        reasons = {reason: count for reason, count in made.counts["dropped"].items() if count}
        why = f" ({', '.join(f'{count:,} {reason}' for reason, count in reasons.items())})" if reasons else ""
        print(
            f"{folder}: {train['examples']:,} examples to train on, {held_out['examples']:,} held out; "
            f"{sum(reasons.values()):,} left out{why}"
        )
    return DONE


def _verify(recipe: Recipe, chosen: argparse.Namespace) -> int:
    from pipeline.reports.verify import verify

    whole, faults = verify(recipe, chosen.recipe)
    for line in whole:
        print(line)
    for line in faults:
        print(line, file=sys.stderr)
    return FAILED if faults else DONE


def _rejected(recipe: Recipe, chosen: argparse.Namespace) -> int:
    from pipeline.reports.rejected import rejected

    for line in rejected(recipe, chosen.reason, chosen.limit):
        print(line)
    return DONE


def _stats(recipe: Recipe, chosen: argparse.Namespace) -> int:
    from pipeline.reports.stats import stats

    lines, page = stats(recipe)
    print("\n".join([*lines, f"plots: {page}"]))
    return DONE


_VERBS = {
    "run": (
        _run,
        "all of it: source to documents, tokenizer, token shards (or the examples of a model that takes those)",
    ),
    "ingest": (_ingest, "read and clean the source, part by part; tables of what is there"),
    "dedup": (_dedup, "compare what was read: exact duplicates, long lines, near duplicates"),
    "clean": (_clean, "source to cleaned documents: what ingest and dedup left to do, then the documents' files"),
    "tokenize": (_tokenize, "documents to token shards, with the run's tokenizer"),
    "pack": (_pack, "token shards to an index of packed samples, for train.packing=best_fit; run does it too"),
    "examples": (_examples, "chat examples for fine-tuning, or those of a model that learns from examples alone"),
    "verify": (
        _verify,
        "re-check every artefact and checkpoint, name what is damaged and what repairs it",
    ),
    "rejected": (_rejected, "the documents that were dropped: how many for each reason, and the first of them"),
    "stats": (_stats, "table of documents, bytes and tokens, and a page with plots"),
}

#: Verbs whose work several tasks can share.
_SHARED = ("ingest", "dedup", "clean", "tokenize")

if __name__ == "__main__":
    run(main, restartable=True)
