"""Commands that document recipe keys: ``python -m configs explain KEY`` and ``python -m configs reference``."""

import argparse
import sys
from collections.abc import Sequence

from configs.command import DONE, FAILED, run
from configs.explain import explain
from configs.reference import PAGE, WRITE_PAGE, markdown


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m configs", description="Recipe keys: what they are and mean.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    explained = verbs.add_parser("explain", help="what a key or a section of the recipe means")
    explained.add_argument("key", nargs="?", default="", metavar="KEY", help="such as train.micro_batch, or train")
    page = verbs.add_parser("reference", help="print docs/recipe.md")
    page.add_argument("--check", action="store_true", help="fail if docs/recipe.md is not up to date")
    chosen = parser.parse_args(arguments)
    if chosen.verb == "explain":
        print(explain(chosen.key))
        return DONE
    text = markdown()
    if not chosen.check:
        print(text, end="")
        return DONE
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return DONE
    print(f"error: {PAGE.name} is not up to date with configs/schema: run `{WRITE_PAGE}`", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    run(main)
