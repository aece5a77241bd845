"""Command-line arguments of the model commands."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from artefacts.errors import RequestError
from configs import command
from configs.schema import Recipe

#: Subcommands of ``evaluate``, with their descriptions.
EVALUATIONS = {
    "attention": "heat maps and statistics of every head for a text, in runs/NAME/attention",
    "temperature": "the same prompt at temperatures from 0.1 to 2.0, with the same seed",
    "checkpoints": "the loss at every kept checkpoint, and the tasks if there are any, as a curve",
}

#: Subcommands of ``compare``, with their descriptions.
COMPARISONS = {
    "optimizers": "SGD, Adam, AdamW and Muon, each at the best of a few learning rates",
    "activations": "plots of activation functions, and a short run with each one that the family supports",
    "compile": "the model in eager mode and compiled",
    "devices": "the model on every kind of device in this machine",
    "attention": "explicit, fused and windowed attention at several lengths",
    "runs": "the evaluations of finished runs, next to each other: compare runs FOLDER FOLDER",
}


def add(verb: str, parser: argparse.ArgumentParser) -> None:
    """Add a command's arguments: the recipe, overrides and options."""
    if verb == "compare":
        _add_compare(parser)
    command.add_recipe_arguments(parser, required=verb not in ("inspect", "compare"))
    if verb == "inspect":
        parser.add_argument(
            "--compare",
            nargs="+",
            default=(),
            metavar="FILE",
            help="instead, print one table that compares these recipes; overrides apply to all of them",
        )
    if verb == "finetune":
        parser.add_argument(
            "--stage", metavar="NAME", help="fine-tuning stage to train; default: the first that is not finished"
        )
    if verb == "evaluate":
        _add_evaluate(parser)
    if verb == "import":
        parser.add_argument(
            "--from",
            dest="source",
            type=Path,
            required=True,
            metavar="FOLDER",
            help="Hugging Face model directory: config.json and .safetensors files, or pytorch_model.bin",
        )
    if verb == "generate":
        parser.add_argument(
            "--prompt-file",
            type=Path,
            metavar="FILE",
            help="read the prompt from a UTF-8 file instead of generate.prompt; -: standard input",
        )
        parser.add_argument(
            "--trace",
            action="store_true",
            help="afterwards, print a table with each token's probability, rank and alternatives",
        )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    choices = "; ".join(f"{name}: {purpose}" for name, purpose in COMPARISONS.items())
    parser.description = f"{parser.description}. {choices}"
    parser.usage = "%(prog)s WHAT [-h] [--steps STEPS] --recipe FILE [section.key=value ...]"
    parser.add_argument(
        "--steps", type=_positive, default=50, help="optimizer steps per run, or timed passes; default: 50"
    )


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    choices = "; ".join(f"evaluate {name}: {purpose}" for name, purpose in EVALUATIONS.items())
    parser.description = f"{parser.description}. {choices}"
    parser.add_argument(
        "--text",
        help="attention: the input text; default: generate.prompt, or for language models the start of a "
        "validation document",
    )
    parser.add_argument("--target", help="attention: the decoder's input, for encoder-decoder models")
    parser.add_argument(
        "--layers", type=_numbers, default=(), metavar="0,2", help="attention: layers to draw; default: all"
    )


def validate(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    """Do what argparse cannot: separate subcommands and files from overrides, and reject conflicting options."""
    if parsed.verb == "inspect":
        _validate_inspect(parser, parsed)
    if parsed.verb == "evaluate":
        _validate_evaluate(parser, parsed)
    if parsed.verb == "compare":
        _validate_compare(parser, parsed)
    if parsed.verb == "generate" and parsed.prompt_file is not None:
        if any(word.startswith("generate.prompt=") for word in parsed.overrides):
            raise RequestError("generate.prompt and --prompt-file are mutually exclusive: remove one of them")
        parsed.overrides.append(f"generate.prompt={_read_prompt(parsed.prompt_file)}")


def _read_prompt(path: Path) -> str:
    """Read a prompt from a file or from standard input, without the final newline.

    Raises:
        RequestError: the prompt cannot be read, or is not UTF-8.
    """
    source = "standard input" if str(path) == "-" else str(path)
    try:
        text = (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()).decode("utf-8")
    except OSError as error:
        raise RequestError(f"--prompt-file {source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"--prompt-file {source} is not UTF-8 (byte {error.start})") from None
    return text.removesuffix("\n")


def require_prompt(recipe: Recipe) -> None:
    """Raise ``RequestError`` if ``generate.prompt`` is empty."""
    if not recipe.generate.prompt:
        raise RequestError("generate.prompt is empty: pass one, such as generate.prompt='Return the'")


def _validate_inspect(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    files = [word for word in parsed.compare if "=" not in word]
    parsed.overrides = [*parsed.overrides, *(word for word in parsed.compare if "=" in word)]
    if not files and (parsed.compare or parsed.recipe is None):
        parser.error("inspect: pass --recipe FILE, or --compare FILE …")
    parsed.compare = files


def _pop_word(parsed: argparse.Namespace, known: Mapping[str, str]) -> str | None:
    """Remove the subcommand from the overrides and return it, or None if there is none.

    Raises:
        RequestError: there are several subcommands, or an unknown one.
    """
    words = [word for word in parsed.overrides if "=" not in word]
    parsed.overrides = [word for word in parsed.overrides if "=" in word]
    if unknown := [word for word in words if word not in known]:
        raise RequestError(
            f"{parsed.verb} {unknown[0]}: choose one of {', '.join(known)}; keys of the recipe are written as "
            "section.key=value"
        )
    if len(words) > 1:
        raise RequestError(f"{parsed.verb} {' and '.join(words)}: choose one at a time")
    return words[0] if words else None


def _validate_compare(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    parsed.runs = []
    if parsed.overrides[:1] == ["runs"]:
        parsed.runs = [word for word in parsed.overrides[1:] if "=" not in word]
        parsed.overrides = [word for word in parsed.overrides if word not in parsed.runs]
        if len(parsed.runs) < 2:
            raise RequestError("compare runs: pass the folders of at least two runs, such as runs/a runs/b")
    parsed.what = _pop_word(parsed, COMPARISONS)
    if parsed.what is None:
        raise RequestError(f"compare: choose what to compare: {', '.join(COMPARISONS)}")
    if parsed.what != "runs" and parsed.recipe is None:
        parser.error("the following arguments are required: --recipe")


def _validate_evaluate(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    parsed.what = _pop_word(parsed, EVALUATIONS)
    if parsed.what != "attention" and (parsed.text is not None or parsed.target is not None or parsed.layers):
        parser.error("--text, --target and --layers belong to `evaluate attention`")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,2") from None
