"""``python -m tokenizer train|encode|decode|inspect --recipe R [section.key=value ...]``."""

import argparse
import random
import sys
from collections.abc import Sequence

from artefacts import manifest
from artefacts.errors import RequestError
from configs.checks import unread_keys
from configs.command import DONE, add_recipe_arguments, parse, read_recipe, run
from configs.run_layout import RunLayout
from configs.schema import Recipe


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tokenizer", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, description in (
        ("train", "train on the run's cleaned documents, or copy the pretrained tokenizer at tokenizer.path"),
        ("encode", "encode text to ids"),
        ("decode", "decode ids to text"),
        ("inspect", "describe the vocabulary, and show sample pieces"),
    ):
        verb = verbs.add_parser(name, help=description, description=description, allow_abbrev=False)
        add_recipe_arguments(verb)
        if name == "encode":
            verb.add_argument("--text", help="text to encode (default: standard input)")
            verb.add_argument("--pieces", action="store_true", help="print pieces instead of ids")
        if name == "decode":
            verb.add_argument("--text", help="ids, separated by spaces or commas (default: standard input)")
            verb.add_argument("--show-special", action="store_true", help="show the names of reserved tokens")
    options = parse(parser, arguments)
    recipe = read_recipe(options)
    unread_keys.check("tokenizer inspect" if options.verb == "inspect" else options.verb, recipe, options.overrides)
    {"train": _train, "encode": _encode, "decode": _decode, "inspect": _inspect}[options.verb](recipe, options)
    return DONE


def _train(recipe: Recipe, arguments: argparse.Namespace) -> None:
    from tokenizer.train import outcome, train

    print(outcome(train(recipe), recipe))


def _encode(recipe: Recipe, arguments: argparse.Namespace) -> None:
    from tokenizer.registry import load_tokenizer

    tokenizer = load_tokenizer(RunLayout.of(recipe).tokenizer)
    ids = tokenizer.encode(_text_argument(arguments))
    print(" ".join(tokenizer.piece(token) if arguments.pieces else str(token) for token in ids))


def _decode(recipe: Recipe, arguments: argparse.Namespace) -> None:
    from tokenizer.registry import load_tokenizer

    tokenizer = load_tokenizer(RunLayout.of(recipe).tokenizer)
    words = _text_argument(arguments).replace(",", " ").split()
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None:
        raise RequestError(f"{wrong!r} is not a token id: use whole numbers separated by spaces or commas")
    text = tokenizer.decode([int(word) for word in words], show_special=arguments.show_special)
    sys.stdout.buffer.write(text.encode() + (b"\n" if sys.stdout.isatty() or arguments.text else b""))


def _text_argument(arguments: argparse.Namespace) -> str:
    if arguments.text is not None:
        return str(arguments.text)
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 (byte {error.start})") from None


def _inspect(recipe: Recipe, arguments: argparse.Namespace) -> None:
    from tokenizer.registry import load_tokenizer

    folder = RunLayout.of(recipe).tokenizer
    published = manifest.require(folder, "tokenizer")
    tokenizer = load_tokenizer(folder)
    ids = range(tokenizer.vocab_size)
    reserved = [token for token in ids if tokenizer.is_reserved(token)]
    text = [token for token in ids if not tokenizer.is_byte(token) and not tokenizer.is_reserved(token)]
    lengths = sorted(len(tokenizer.piece(token)) for token in text)
    print(f"{folder}: {tokenizer.vocab_size:,} ids")
    print(f"  reserved      {len(reserved)}: {' '.join(tokenizer.piece(token) for token in reserved)}")
    print(f"  bytes         {sum(tokenizer.is_byte(token) for token in ids)}")
    if text:
        print(f"  text pieces   {len(text):,}: median {lengths[len(lengths) // 2]}, longest {lengths[-1]} characters")
    sampled = "trained on" if recipe.tokenizer.kind == "bpe" else "measured on"
    print(
        f"  {sampled:13} {published.counts['sample_documents']:,} documents, {published.counts['sample_bytes']:,} bytes"
    )
    print(f"  compression   {published.counts['bytes_per_token']:.2f} bytes per token")
    shown = sorted(random.Random(0).sample(text, min(24, len(text))))
    print("  sample pieces " + " ".join(repr(tokenizer.piece(token))[1:-1] for token in shown))


if __name__ == "__main__":
    run(main, restartable=True)
