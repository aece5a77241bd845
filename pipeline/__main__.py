"""``python -m pipeline run|clean|tokenize|examples|verify|stats --recipe R [section.key=value ...]``."""

import argparse
import sys
from collections.abc import Sequence

from artefacts.layout import RunLayout
from configs.command import DONE, FAILED, add_recipe_arguments, parse, read_recipe, run
from configs.schema import Recipe

# Stages import what they need when they are asked for: to say "up to date" takes no numpy, no Arrow, no SentencePiece.


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (_, does) in _VERBS.items():
        add_recipe_arguments(verbs.add_parser(name, help=does, description=does))
    chosen = parse(parser, arguments)
    return _VERBS[chosen.verb][0](read_recipe(chosen), chosen.recipe)


def _run(recipe: Recipe, path: str) -> int:
    _clean(recipe, path)
    _train_tokenizer(recipe)
    return _tokenize(recipe, path)


def _clean(recipe: Recipe, path: str) -> int:
    from pipeline import documents

    made = documents.build(recipe)
    folder = RunLayout.of(recipe).documents
    if made is None:
        print(f"{folder}: up to date")
    else:
        dropped = sum(made.counts["dropped"].values())
        print(
            f"{folder}: {made.counts['documents']:,} documents, {made.counts['bytes'] / 1e6:.1f} MB; "
            f"{dropped:,} dropped, {made.counts['outside_sample']:,} outside the sample"
        )
    return DONE


def _train_tokenizer(recipe: Recipe) -> None:
    from tokenizer.train import outcome, train

    print(outcome(train(recipe), recipe))


def _tokenize(recipe: Recipe, path: str) -> int:
    from pipeline import tokens

    made = tokens.build(recipe)
    folder = RunLayout.of(recipe).tokens
    if made is None:
        print(f"{folder}: up to date")
    else:
        train, validation = made.counts["train"], made.counts["validation"]
        print(
            f"{folder}: {train['tokens']:,} training tokens in {train['documents']:,} documents, "
            f"{validation['tokens']:,} validation tokens in {validation['documents']:,}; "
            f"{sum(made.counts['dropped'].values()):,} left out of validation for overlap"
        )
    return DONE


def _examples(recipe: Recipe, path: str) -> int:
    from pipeline import examples

    made = examples.build(recipe)
    folder = RunLayout.of(recipe).examples
    if made is None:
        print(f"{folder}: up to date")
    else:
        train, held_out = made.counts["train"], made.counts["held_out"]
        print(
            f"{folder}: {train['examples']:,} examples to train on, {held_out['examples']:,} held out; "
            f"{sum(made.counts['dropped'].values()):,} left out"
        )
    return DONE


def _verify(recipe: Recipe, path: str) -> int:
    from pipeline.verify import verify

    whole, faults = verify(recipe, path)
    for line in whole:
        print(line)
    for line in faults:
        print(line, file=sys.stderr)
    return FAILED if faults else DONE


def _stats(recipe: Recipe, path: str) -> int:
    from pipeline.stats import table

    print("\n".join(table(recipe)))
    return DONE


_VERBS = {
    "run": (_run, "all of it: source to documents, tokenizer, token shards"),
    "clean": (_clean, "source to cleaned documents"),
    "tokenize": (_tokenize, "documents to token shards, with the run's tokenizer"),
    "examples": (_examples, "chat examples for fine-tuning"),
    "verify": (
        _verify,
        "re-check every artefact and checkpoint, name what is damaged and what repairs it",
    ),
    "stats": (_stats, "table of documents, bytes and tokens"),
}

if __name__ == "__main__":
    run(main)
