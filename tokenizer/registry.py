"""Loads a tokenizer of any kind."""

from pathlib import Path

from artefacts import command_hints, repair_hints
from artefacts.errors import RequestError
from tokenizer.base import CHARACTERS_NAME, JSON_NAME, MODEL_NAME, Tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer from an artefact's folder.

    Raises:
        RequestError: the tokenizer is missing or damaged.
    """
    paths = [Path(folder) / name for name in (MODEL_NAME, JSON_NAME, CHARACTERS_NAME)]
    path = next((path for path in paths if path.exists()), paths[0])
    try:
        if path.name == JSON_NAME:
            from tokenizer.huggingface import HuggingFaceTokenizer

            return HuggingFaceTokenizer.of_artefact(path)
        if path.name == CHARACTERS_NAME:
            from tokenizer.characters import CharacterTokenizer

            return CharacterTokenizer(path.read_bytes())
        from tokenizer.bpe import BpeTokenizer

        return BpeTokenizer(path.read_bytes())
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist: run `{command_hints.make('tokenizer')}` first") from None
    except RequestError as error:
        raise RequestError(f"{path}: {error}; {repair_hints.hint('tokenizer', path.parent)}") from None
