"""Encoding speed in ids per second: Millrace against SentencePiece, Hugging Face's tokenizers and tiktoken.

``python -m benchmarks.data.encode [--quick] [--corpus FILE]``. The text is the documentation of installed packages, or
the ``text`` column of a parquet file. All vocabularies have the same size and come from that text. Millrace and
SentencePiece use the same model, and tiktoken gets the model's pieces as merges. "Cold" is a new tokenizer. "Steady" is
a tokenizer that has encoded half of the documents and now encodes the other half. Peers get lists of Python strings,
and Millrace gets an Arrow column. Creating these is not measured. If a peer produces a different number of ids, its
seconds are scaled, so that the ratios compare ids per second.
"""

import argparse
import os
import random
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from artefacts.checkout import CHECKOUT
from benchmarks import corpus
from benchmarks.paired import Ratio, compare, seconds
from configs.load import load_recipe
from tokenizer.bpe import BpeTokenizer
from tokenizer.train import _chunks, _fit

_QUICK_BYTES = 4 << 20
#: Bytes to encode with one and two processes, in several passes. This takes much longer than starting the processes.
_PASSED_BYTES = 200 << 20


class Corpus(NamedTuple):
    """Shuffled documents, as an Arrow column and as strings."""

    column: pyarrow.LargeStringArray
    texts: list[str]

    def part(self, first: int, last: int) -> "Corpus":
        return Corpus(self.column[first:last], self.texts[first:last])


class Peer(NamedTuple):
    """A tokenizer to compare with: a function that encodes texts, and a function that counts the ids in its result."""

    name: str
    encode: Callable[[list[str]], Any]
    count: Callable[[Any], int]


def documents(path: Path | None, most: int | None) -> Corpus:
    """Return about ``most`` characters of documents, from a parquet file or else from installed packages."""
    texts = corpus.docstrings() if path is None else parquet.read_table(path, columns=["text"])["text"].to_pylist()
    random.Random(0).shuffle(texts)
    if most is not None:
        sizes = np.cumsum([len(text) for text in texts])
        texts = texts[: int(np.searchsorted(sizes, most)) + 1]
    return Corpus(pyarrow.array(texts, pyarrow.large_string()), texts)


def model_of(chosen: Corpus, vocab_size: int) -> bytes:
    """Return the SentencePiece model that ``python -m tokenizer train`` would train on all of the text."""
    recipe = load_recipe(CHECKOUT / "configs" / "demo.yaml", [f"tokenizer.vocab_size={vocab_size}"])
    return _fit([chunk for text in chosen.texts for chunk in _chunks(text)], recipe)


def _ids_in_lists(encoded: list[list[int]]) -> int:
    return sum(map(len, encoded))


def sentencepiece_of(model: bytes) -> Peer:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor()
    pieces.LoadFromSerializedProto(model)
    return Peer("SentencePiece", partial(pieces.encode, num_threads=1), _ids_in_lists)


def tokenizers_of(chosen: Corpus, vocab_size: int) -> Peer:
    import tokenizers

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(chosen.texts, vocab_size=vocab_size, show_progress=False)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encode = tokenizers.Tokenizer.from_str(bpe.to_str()).encode_batch_fast

    def in_batches(texts: list[str]) -> list[list[int]]:
        """Encode a thousand documents at a time, like ``datasets.map``. Larger batches are slower."""
        batches = (texts[at : at + 1000] for at in range(0, len(texts), 1000))
        return [encoding.ids for batch in batches for encoding in encode(batch)]

    return Peer("Hugging Face tokenizers", in_batches, _ids_in_lists)


def tiktoken_of(model: bytes) -> Peer:
    """Return tiktoken with the model's pieces as merges. Multi-byte characters come first, as in SentencePiece.

    The pattern splits English text where Millrace does. It is fast, because it has no lookahead.
    """
    import sentencepiece
    import tiktoken

    pieces = sentencepiece.SentencePieceProcessor()
    pieces.LoadFromSerializedProto(model)
    plain = [i for i in range(len(pieces)) if not (pieces.IsControl(i) or pieces.IsByte(i) or pieces.IsUnknown(i))]
    spellings = [pieces.IdToPiece(i).replace("\u2581", " ") for i in plain]
    ranks = {bytes([byte]): byte for byte in range(256)}
    for character in (piece.encode() for piece in spellings if len(piece) == 1):
        for length in range(2, len(character) + 1):
            ranks.setdefault(character[:length], len(ranks))
    for piece in spellings:
        ranks.setdefault(piece.encode(), len(ranks))
    pattern = r" *[A-Za-z]+| *[^A-Za-z0-9 \n]+| +|[0-9]|\n"
    encoding = tiktoken.Encoding("same", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return Peer("tiktoken", lambda texts: [encoding.encode_ordinary(text) for text in texts], _ids_in_lists)


def _warmed(model: bytes, before: Corpus | None) -> BpeTokenizer:
    tokenizer = BpeTokenizer(model)
    if before is not None:
        tokenizer.encode_column(before.column)
    return tokenizer


def against(
    peer: Peer, model: bytes, before: Corpus | None, chosen: Corpus, target: float | None, rounds: int
) -> Ratio:
    """Compare Millrace with a peer on ``chosen``, in one process. Millrace has already encoded ``before``, if given."""
    ids, _ = BpeTokenizer(model).encode_column(chosen.column, end=False)

    def ours() -> float:
        if before is None:
            return seconds(lambda: BpeTokenizer(model).encode_column(chosen.column, end=False))
        tokenizer = _warmed(model, before)
        return seconds(lambda: tokenizer.encode_column(chosen.column, end=False))

    def theirs() -> float:
        begin = time.perf_counter()
        encoded = peer.encode(chosen.texts)
        return (time.perf_counter() - begin) * len(ids) / peer.count(encoded)

    state = "cold" if before is None else "steady"
    name = f"tokenizing, {state}, against {peer.name}"
    return compare(name, ours, theirs, len(ids) / 1e6, "million ids/s", target, rounds)


def _serve(model: bytes, before: Corpus, parts: list[Corpus], passes: int, number: int, pipe: Any) -> None:
    """Run a process that, for each message, encodes its part (or all documents, if it is alone) ``passes`` times."""
    tokenizer = _warmed(model, before)
    pipe.send("ready")
    while (alone := pipe.recv()) is not None:
        for part in parts if alone else [parts[number]]:
            for _ in range(passes):
                tokenizer.encode_column(part.column)
        pipe.send("done")


def two_processes(model: bytes, before: Corpus, chosen: Corpus, rounds: int) -> Ratio:
    """Compare two processes that each encode half of the documents with one process that encodes all. All are warm."""
    context = get_context("fork")
    half = len(chosen.texts) // 2
    parts = [chosen.part(0, half), chosen.part(half, len(chosen.texts))]
    passes = -(-_PASSED_BYTES // chosen.column.nbytes)
    pipes, processes = [], []
    for number in range(2):
        pipe, other = context.Pipe()
        process = context.Process(target=_serve, args=(model, before, parts, passes, number, other), daemon=True)
        process.start()
        pipe.recv()
        pipes.append(pipe)
        processes.append(process)

    def took(working: list[Any]) -> float:
        begin = time.perf_counter()
        for pipe in working:
            pipe.send(len(working) == 1)
        for pipe in working:
            pipe.recv()
        return time.perf_counter() - begin

    count = passes * len(BpeTokenizer(model).encode_column(chosen.column)[0]) / 1e6
    name = "tokenizing, two processes against one"
    result = compare(name, lambda: took(pipes), lambda: took(pipes[:1]), count, "million ids/s", 1.8, rounds)
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return result


def distinct_words(model: bytes, chosen: Corpus) -> int:
    """Return how many words the cache has to encode with SentencePiece, over all documents."""
    tokenizer = BpeTokenizer(model)
    tokenizer.encode_column(chosen.column[:1])
    words = tokenizer._words
    assert words is not None, "the C code is not there: nothing to measure"
    encode, requested = words._encode_words, []

    def counted(wanted: bytes) -> Any:
        requested.append(wanted.count(b"\n"))
        return encode(wanted)

    words._encode_words = counted  # type: ignore[method-assign]
    tokenizer.encode_column(chosen.column)
    return sum(requested)


def check(model: bytes, chosen: Corpus) -> None:
    """Check that the ids equal SentencePiece's, except in texts with U+2581, which SentencePiece reads as a space."""
    plain = [i for i, text in enumerate(chosen.texts) if "\u2581" not in text]
    ids, _ = BpeTokenizer(model).encode_column(chosen.column.take(pyarrow.array(plain)), end=False)
    expected = sentencepiece_of(model).encode([chosen.texts[i] for i in plain])
    assert np.array_equal(ids, np.fromiter((token for ids_of_text in expected for token in ids_of_text), np.int32))


def measure(quick: bool = False, file: Path | None = None) -> list[Ratio]:
    """Run all comparisons. ``quick`` uses 4 MB of text and a small vocabulary."""
    chosen = documents(file, _QUICK_BYTES if quick else None)
    vocab_size, rounds = (8_000, 2) if quick else (32_000, 3)
    half = len(chosen.texts) // 2
    before, unseen = chosen.part(0, half), chosen.part(half, len(chosen.texts))
    model = model_of(chosen, vocab_size)
    check(model, chosen)
    megabytes = sum(len(text.encode()) for text in chosen.texts) / 1e6
    words = distinct_words(model, chosen) / megabytes
    rows = []
    for peer, cold, steady in (
        (sentencepiece_of(model), 1.2, 3.0),
        (tokenizers_of(chosen, vocab_size), 4.0, 8.0),
        (tiktoken_of(model), None, 1.0),
    ):
        rows.append(against(peer, model, None, chosen, cold, rounds))
        rows.append(against(peer, model, before, unseen, steady, rounds))
    rows.append(two_processes(model, before, unseen, rounds))
    about = f"{megabytes:.1f} MB, {words:,.0f} distinct words per MB"
    return [rows[0]._replace(name=f"{rows[0].name} ({about})"), *rows[1:]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data.encode", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less text and fewer rounds")
    parser.add_argument("--corpus", type=Path, help="parquet file with a column text")
    chosen = parser.parse_args()
    for ratio in measure(chosen.quick, chosen.corpus):
        print(ratio)


if __name__ == "__main__":
    main()
