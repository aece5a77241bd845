"""What the model commands take beside the recipe and its overrides."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from artefacts.errors import RequestError
from configs import command

#: What ``evaluate`` may be followed by.
EVALUATIONS = {
    "attention": "heat maps and numbers of every head on a text, in runs/NAME/attention",
    "temperature": "the same prompt at temperatures from 0.1 to 2.0, with the same seed",
}

#: What ``compare`` is followed by.
COMPARISONS = {
    "optimizers": "SGD, Adam, AdamW and Muon, each at the best of a few learning rates",
    "activations": "activation functions drawn, and a training with each that the family has",
    "compile": "the model as it is and compiled",
    "devices": "the model on every kind of device that is here",
    "attention": "written-out, fused and windowed attention over lengths",
}


def add(verb: str, parser: argparse.ArgumentParser) -> None:
    """A command's arguments: the recipe, overrides and its own options."""
    if verb == "compare":
        told = "; ".join(f"{name}: {purpose}" for name, purpose in COMPARISONS.items())
        parser.description = f"{parser.description}. {told}"
        parser.usage = "%(prog)s WHAT [-h] [--steps STEPS] --recipe FILE [section.key=value ...]"
        parser.add_argument(
            "--steps", type=_positive, default=50, help="optimiser steps of a training, or passes timed; default: 50"
        )
    command.add_recipe_arguments(parser, required=verb != "inspect")
    if verb == "inspect":
        parser.add_argument(
            "--compare",
            nargs="+",
            default=(),
            metavar="FILE",
            help="in place of all that one table of these recipes; overrides are for each of them",
        )
    if verb == "evaluate":
        told = "; ".join(f"evaluate {name}: {purpose}" for name, purpose in EVALUATIONS.items())
        parser.description = f"{parser.description}. {told}"
        parser.add_argument(
            "--text",
            help="attention: what the model reads; default: generate.prompt, or of models of running text how a "
            "validation text begins",
        )
        parser.add_argument("--target", help="attention: what the decoder of a model of pairs reads")
        parser.add_argument(
            "--layers", type=_numbers, default=(), metavar="0,2", help="attention: layers to draw; default: all"
        )
    if verb == "import":
        parser.add_argument(
            "--from",
            dest="source",
            type=Path,
            required=True,
            metavar="FOLDER",
            help="model directory in Hugging Face's layout: config.json and .safetensors, or pytorch_model.bin",
        )
    if verb == "generate":
        parser.add_argument(
            "--prompt-file",
            type=Path,
            metavar="FILE",
            help="the prompt, as it stands in a file in UTF-8, in place of generate.prompt; -: standard input",
        )
        parser.add_argument(
            "--trace", action="store_true", help="then a table: each token's probability, rank and alternatives"
        )


def settle(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Sort out what argparse cannot: words and files from overrides; and refuse options that do not go together."""
    if parsed.verb == "inspect":
        _settle_inspect(parser, parsed)
    if parsed.verb == "evaluate":
        _settle_evaluate(parser, parsed)
    if parsed.verb == "compare":
        parsed.what = _word(parsed, COMPARISONS)
        if parsed.what is None:
            raise RequestError(f"compare what? One of {', '.join(COMPARISONS)}")
    if parsed.verb == "generate" and parsed.prompt_file is not None:
        if any(word.startswith("generate.prompt=") for word in parsed.overrides):
            raise RequestError("generate.prompt and --prompt-file are two prompts: leave one out")
        parsed.overrides.append(f"generate.prompt={_read_prompt(parsed.prompt_file)}")


def _read_prompt(path: Path) -> str:
    """The text of a file, or of standard input, without the newline at its end.

    Raises:
        RequestError: it cannot be read, or is not UTF-8.
    """
    source = "standard input" if str(path) == "-" else str(path)
    try:
        text = (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()).decode("utf-8")
    except OSError as error:
        raise RequestError(f"--prompt-file {source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"--prompt-file {source} is not UTF-8 (byte {error.start})") from None
    return text.removesuffix("\n")


def _settle_inspect(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    files = [word for word in parsed.compare if "=" not in word]
    parsed.overrides = [*parsed.overrides, *(word for word in parsed.compare if "=" in word)]
    if not files and (parsed.compare or parsed.recipe is None):
        parser.error("inspect: give --recipe FILE, or --compare FILE …")
    parsed.compare = files


def _word(parsed: argparse.Namespace, known: Mapping[str, str]) -> str | None:
    """The word among the overrides that says what to do, which is taken out; None: there is none.

    Raises:
        RequestError: there are several, or one that is not known.
    """
    words = [word for word in parsed.overrides if "=" not in word]
    parsed.overrides = [word for word in parsed.overrides if "=" in word]
    if strange := [word for word in words if word not in known]:
        raise RequestError(
            f"{parsed.verb} {strange[0]}: there are {', '.join(known)}; keys of the recipe are written as "
            "section.key=value"
        )
    if len(words) > 1:
        raise RequestError(f"{parsed.verb} {' and '.join(words)}: one at a time")
    return words[0] if words else None


def _settle_evaluate(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    parsed.what = _word(parsed, EVALUATIONS)
    if parsed.what != "attention" and (parsed.text is not None or parsed.target is not None or parsed.layers):
        parser.error("--text, --target and --layers belong to `evaluate attention`")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 1 is wanted")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers are wanted, such as 0,2") from None
