"""Near duplicates: Millrace (map, reduce, resolve) against datatrove's four MinHash stages, on the same documents.

Half of the documents are near copies of the others. The Jaccard similarity of each pair's word 5-grams is known and
ranges from 0.5 to 1. Both programs hold the documents in memory, run in one process, write intermediate files to disk,
and return which documents they keep. Run ``python -m benchmarks.data.dedup``.
"""

import random
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import pyarrow

from benchmarks.corpus import web_pages
from benchmarks.paired import Ratio, better, compare, seconds
from configs.schema.clean import CleanSection
from pipeline import dedup

_THRESHOLD = 0.8
_WORDS = 5
_PART = 500


class Corpus(NamedTuple):
    """Original documents, then a near copy of each in the same order, and the similarity of each pair."""

    texts: list[str]
    truth: list[float]

    @property
    def megabytes(self) -> float:
        return sum(len(text.encode()) for text in self.texts) / 1e6


class Quality(NamedTuple):
    """Recall and precision for the pairs whose similarity is at least the threshold."""

    recall: float
    precision: float

    @classmethod
    def of(cls, stays: list[bool], corpus: Corpus) -> "Quality":
        half = len(corpus.truth)
        is_new = [not (one and other) for one, other in zip(stays[:half], stays[half:], strict=True)]
        alike = [like >= _THRESHOLD for like in corpus.truth]
        both = sum(one and other for one, other in zip(is_new, alike, strict=True))
        return cls(both / max(sum(alike), 1), both / max(sum(is_new), 1))


def _originals(count: int) -> list[str]:
    """Return real documents, then the same documents with shuffled words."""
    rng = random.Random(0)
    texts = web_pages()
    originals = list(texts)
    while len(originals) < count:
        words = texts[len(originals) % len(texts)].split(" ")
        rng.shuffle(words)
        originals.append(" ".join(words))
    return originals[:count]


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.lower())
    return {tuple(words[at : at + _WORDS]) for at in range(max(len(words) - _WORDS + 1, 1))}


def planted(count: int) -> Corpus:
    """Return ``count`` documents and a near copy of each."""
    rng = random.Random(1)
    originals, copies, truth = _originals(count), [], []
    for text in originals:
        rate = rng.uniform(0, 0.08)
        copies.append(re.sub(r"\w+", lambda word: f"w{rng.randrange(10**6)}" if rng.random() < rate else word[0], text))  # noqa: B023
        one, other = _shingles(text), _shingles(copies[-1])
        truth.append(len(one & other) / len(one | other))
    return Corpus(originals + copies, truth)


def ours(corpus: Corpus, folder: Path) -> list[bool]:
    """Return which documents Millrace keeps."""
    section = CleanSection.model_validate({"exact_dedup": False, "near_dedup": {"enabled": True}})
    parts = range(0, len(corpus.texts), _PART)
    for number, start in enumerate(parts):
        writer = dedup.KeyWriter(folder, number, section)
        writer.add(pyarrow.array(corpus.texts[start : start + _PART], pyarrow.large_string()))
        writer.finish()
    for task in dedup.plan(folder, section):
        dedup.reduce(folder, section, task)
    dedup.resolve(folder, section)
    return [kept == dedup.KEPT for number in range(len(parts)) for kept in dedup.verdict(folder, section, number)[0]]


def datatrove(corpus: Corpus, folder: Path) -> list[bool]:
    """Return which documents datatrove keeps with its default configuration (5-grams, 14 buckets of 8 hashes)."""
    import xxhash
    from datatrove.data import Document
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.dedup import minhash
    from loguru import logger

    logger.disable("datatrove")
    documents = [Document(text, str(number)) for number, text in enumerate(corpus.texts)]
    kept: set[int] = set()

    def collect(data, rank=0, world_size=1):  # type: ignore[no-untyped-def]
        kept.update(int(document.id) for document in data)

    names = [str(folder / name) for name in ("signatures", "buckets", "clusters")]
    config = minhash.MinhashConfig()
    signature = minhash.MinhashDedupSignature(names[0], config)
    # The same hash function as datatrove's. xxhash 4 accepts only bytes, but datatrove 0.10 passes strings.
    signature._hash_func = lambda shingle: xxhash.xxh64_intdigest(shingle.encode())
    stages = [
        ([documents, signature], 1),
        ([minhash.MinhashDedupBuckets(names[0], names[1], config=config)], config.num_buckets),
        ([minhash.MinhashDedupCluster(names[1], names[2], config)], 1),
        ([documents, minhash.MinhashDedupFilter(names[2]), collect], 1),
    ]
    for number, (steps, tasks) in enumerate(stages):
        LocalPipelineExecutor(steps, tasks, 1, logging_dir=str(folder / f"log-{number}")).run()
    return [number in kept for number in range(len(corpus.texts))]


def measure(quick: bool = False) -> list[Ratio]:
    """Time both programs, and compare how well they find the planted pairs."""
    corpus = planted(60 if quick else 1000)
    root = Path(tempfile.mkdtemp(prefix="dedup-"))
    rows = {}

    def run(work, name):  # type: ignore[no-untyped-def]
        folder = Path(tempfile.mkdtemp(dir=root))

        def once() -> None:
            rows[name] = Quality.of(work(corpus, folder), corpus)

        return seconds(once)

    try:
        # Warm up: both programs load tables and word lists once.
        small = Corpus(corpus.texts[:2], [1.0])
        for number, work in enumerate((ours, datatrove)):
            work(small, root / f"warm-{number}")
        ratio = compare(
            f"near duplicates, {corpus.megabytes:.1f} MB, against datatrove",
            lambda: run(ours, "ours"),
            lambda: run(datatrove, "datatrove"),
            corpus.megabytes,
            "MB/s",
            2.0,
            2 if quick else 3,
        )
    finally:
        shutil.rmtree(root)
    alike = sum(like >= _THRESHOLD for like in corpus.truth)
    mine, peers = rows["ours"], rows["datatrove"]
    of = f"of {len(corpus.truth)} planted pairs, {alike} with a similarity of {_THRESHOLD} or more"
    return [
        ratio,
        better(f"recall {of}", mine.recall, peers.recall, "found"),
        better("precision of the same", mine.precision, peers.precision, "right"),
    ]


if __name__ == "__main__":
    for line in measure():
        print(line)
