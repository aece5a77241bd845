"""Which documents train and which are held out for validation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray

from artefacts.progress import bar
from configs.errors import RequestError
from configs.schema.data import TokensSection
from pipeline import overlap, shards
from pipeline import workers as processes
from tokenizer.sample import keyed_hashes

TRAIN, VALIDATION, LEFT_OUT = 0, 1, 2


@dataclass(frozen=True)
class Split:
    """The sides of all documents, in their order on disk.

    Attributes:
        sides: TRAIN, VALIDATION or LEFT_OUT (held out, but too much of it stands in training text) for each document.
        held_out: numbers of the documents that the hash held out.
        overlap: for each of those, the share of its distinct word sequences that training documents contain.
        forced: the hash held out none, so the document with the smallest one was taken.
    """

    sides: NDArray[np.uint8]
    held_out: NDArray[np.int64]
    overlap: NDArray[np.float64]
    forced: bool


def lowest(hashes: NDArray[np.uint64], fraction: float) -> tuple[NDArray[np.bool_], bool]:
    """Mask of the members whose hash falls into the lowest ``fraction``, and whether one had to be forced.

    Where none falls there, the one with the smallest hash is taken, and all that share it.
    """
    chosen = hashes < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    forced = not chosen.any()
    return (hashes == hashes.min() if forced else chosen), forced


def held_out(digests: list[bytes], seed: int, fraction: float) -> tuple[NDArray[np.bool_], bool]:
    """Mask of the documents held out by the hash of (seed, text), and whether one had to be forced.

    A pure function of the text (through its digest): the same document falls on the same side in every corpus.
    """
    return lowest(keyed_hashes(seed, "validation", (digest.hex() for digest in digests)), fraction)


def split(documents: Path, section: TokensSection, seed: int, workers: int) -> Split:
    """Split the documents of a folder and measure the overlap of those held out.

    Raises:
        RequestError: nothing is left to train on, or to validate on.
    """
    chosen, forced = held_out(
        shards.read_columns(documents, ["digest"])["digest"].to_pylist(), seed, section.validation_fraction
    )
    if chosen.all():
        raise RequestError(
            f"all {len(chosen)} documents fall to validation: give more text or lower data.tokens.validation_fraction "
            "(for text files, a smaller data.source.chunk_chars gives more documents)"
        )
    found = _overlap(documents, chosen, section, workers)
    numbers = np.flatnonzero(chosen)
    sides = np.where(chosen, VALIDATION, TRAIN).astype(np.uint8)
    sides[numbers[found > section.max_overlap]] = LEFT_OUT
    if not (sides == VALIDATION).any():
        raise RequestError(
            f"every validation document ({len(numbers)}) shares more than data.tokens.max_overlap "
            f"({section.max_overlap:g}) of its {section.overlap_words}-word sequences with training documents: "
            "raise data.tokens.validation_fraction or data.tokens.max_overlap"
        )
    return Split(sides, numbers, found, forced)


def _overlap(documents: Path, chosen: NDArray[np.bool_], section: TokensSection, workers: int) -> NDArray[np.float64]:
    if section.max_overlap >= 1:
        return np.zeros(int(chosen.sum()))
    tasks, seen = [], 0
    for path, group, rows in shards.row_groups(documents):
        tasks.append((path, group, ~chosen[seen : seen + rows]))
        seen += rows
    columns = (_texts(path, group, ~mask) for path, group, mask in tasks)
    compared = overlap.HeldOut(columns, section.overlap_words)
    with bar(len(tasks), "group", "overlap") as progress:
        begin = (section.overlap_words, compared.distinct)
        for found in processes.ordered(_shared, tasks, min(workers, len(tasks)), _prepare, begin):
            compared.mark(found)
            progress.update()
    return compared.overlap()


def _prepare(words: int, distinct: overlap.Hashes) -> None:
    _state.update(words=words, distinct=distinct)


def _shared(path: Path, group: int, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    return overlap.shared(_texts(path, group, mask), _state["words"], _state["distinct"])


def _texts(path: Path, group: int, mask: NDArray[np.bool_]) -> pyarrow.ChunkedArray:
    return shards.read_group(path, group, ["text"])["text"].filter(mask)


#: What ``_shared`` needs in each process; set once, since it is large.
_state: dict[str, Any] = {}
