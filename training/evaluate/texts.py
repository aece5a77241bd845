"""The texts of ``evaluate.texts``: any source of documents, tokenized into shards as validation text is."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from artefacts import atomic
from artefacts.errors import RequestError
from artefacts.progress import bar
from configs.schema import Recipe
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import Source
from pipeline.sources.registry import open_source
from pipeline.sources.storage.digests import digests_of
from pipeline.tokens.indexed_dataset import IndexedDatasetWriter, id_type
from tokenizer.base import Tokenizer, writable

#: The split's name in the shards' file names.
SPLIT = "text"
_COUNTS = "counts.json"
#: Documents per write.
_ROWS = 256


def open_texts(recipe: Recipe) -> dict[str, Source]:
    """Open the sources of the texts, by name.

    Raises:
        RequestError: there is nothing at a text's path.
    """
    return {name: open_source(section, recipe, _key(name)) for name, section in recipe.evaluate.texts.items()}


def fingerprints(sources: dict[str, Source], target: Path) -> dict[str, str]:
    """Return the fingerprint of every text's files. ``target`` is the folder of the evaluation.

    Raises:
        RequestError: a file cannot be read.
    """
    inputs = {f"text {name}: {item}": value for name, one in sources.items() for item, value in one.inputs().items()}
    if not inputs:
        return {}
    with digests_of(target) as digests:
        return {name: value if isinstance(value, str) else digests.of(name, value) for name, value in inputs.items()}


def write_tokens(recipe: Recipe, name: str, source: Source, tokenizer: Tokenizer, folder: Path) -> dict[str, int]:
    """Tokenize a text's documents into one shard, each followed by the end-of-text token.

    A shard that is already complete is kept.

    Returns:
        Its number of ``documents``, ``tokens`` and UTF-8 ``bytes``.

    Raises:
        RequestError: too many inputs cannot be read, or there is no text.
    """
    if (folder / _COUNTS).exists():
        return {key: int(value) for key, value in atomic.read_json(folder / _COUNTS).items()}
    folder.mkdir(parents=True, exist_ok=True)
    writer = IndexedDatasetWriter(folder / f"{SPLIT}-00000", id_type(tokenizer.vocab_size))
    counts = {"documents": 0, "tokens": 0, "bytes": 0}
    for texts in _texts(recipe, name, source):
        encoded = [[*ids, tokenizer.end_of_text_id] for ids in tokenizer.encode_batch(texts)]
        writer.add(np.concatenate([np.asarray(ids) for ids in encoded]), np.array([len(ids) for ids in encoded]))
        counts["documents"] += len(texts)
        counts["bytes"] += sum(len(text.encode()) for text in texts)
    counts["tokens"] = writer.tokens
    if not counts["bytes"]:
        raise RequestError(f"{_key(name)}: there is no text in it")
    writer.finish()
    atomic.write_json(folder / _COUNTS, counts)
    return counts


def _texts(recipe: Recipe, name: str, source: Source) -> Iterator[list[str]]:
    """Yield the texts of a source's documents in lists, without empty ones."""
    bad, texts = BadInputs(), list[str]()
    if source.warning:
        print(source.warning)
    with bar(source.size(1), "B", f"text {name}") as progress:
        for part in source.parts(1):
            for document in source.read(part, bad):
                if document.text:
                    texts.append(writable(document.text))
                if len(texts) >= _ROWS:
                    yield texts
                    texts = []
            progress.update(part.size)
    if texts:
        yield texts
    bad.check(recipe.data.max_bad_fraction, name, _key(name))


def _key(name: str) -> str:
    return f"evaluate.texts.{name}"
