"""Small corpora for deduplication: all its stages, and near copies with a known similarity."""

import hashlib
import itertools
import random
import re

import pyarrow

from configs.schema.clean import CleanSection
from pipeline import dedup
from tests.support.pipeline import corpora

#: Bytes of keys per task, so few that a small corpus needs many tasks.
TINY = 3000


def section(exact=False, lines=0, near=False, **keys):
    return CleanSection(exact_dedup=exact, line_dedup_chars=lines, near_dedup={"enabled": near, **keys})


def digests(texts):
    return [hashlib.sha256(text.encode()).digest()[:16] for text in texts]


def write(folder, number, texts, keys):
    """The keys of a part."""
    writer = dedup.KeyWriter(folder, number, keys)
    writer.add(pyarrow.array(texts, pyarrow.large_string()), digests(texts))
    writer.finish()


def finish(folder, keys, max_bytes):
    """The steps after the map step."""
    for task in dedup.plan(folder, keys, max_bytes):
        dedup.reduce(folder, keys, task, max_bytes)
    dedup.resolve(folder, keys)
    for task in dedup.plan_lines(folder, keys, max_bytes):
        dedup.reduce(folder, keys, task, max_bytes)


def decide(folder, parts, keys, max_bytes=1 << 20):
    """Run all steps on parts (lists of texts); returns all verdicts, and removed (document, line) pairs."""
    for number, texts in enumerate(parts):
        write(folder, number, texts, keys)
    finish(folder, keys, max_bytes)
    return verdicts(folder, keys, parts)


def verdicts(folder, keys, parts):
    documents, lines, first = [], [], 0
    for number, texts in enumerate(parts):
        verdict = dedup.verdict(folder, keys, number)
        assert len(verdict.documents) == len(texts)
        documents += verdict.documents.tolist()
        lines += zip((verdict.rows + first).tolist(), verdict.lines.tolist(), strict=True)
        first += len(texts)
    return documents, lines


def cut(texts, places):
    """The texts divided into parts, some of them possibly empty."""
    borders = [0, *sorted(min(place, len(texts)) for place in places), len(texts)]
    return [texts[start:stop] for start, stop in itertools.pairwise(borders)]


def jaccard(one, other, words=5):
    """Jaccard similarity of the sets of word 5-grams, by its definition."""
    first, second = (
        {tuple(words_of_text[at : at + words]) for at in range(max(len(words_of_text) - words + 1, 1))}
        for words_of_text in (re.findall(r"[^\W_]+", text.lower()) for text in (one, other))
    )
    return len(first & second) / len(first | second)


def near_copy(text, rate, rng):
    """The text with a fraction of its words replaced."""
    return re.sub(r"\w+", lambda word: f"w{rng.randrange(10**6)}" if rng.random() < rate else word[0], text)


def planted(count, seed=0, max_fraction=0.08):
    """Documents, then a near copy of each, and the similarity of each pair."""
    rng = random.Random(seed)
    originals = corpora.texts(count, seed, sentences=rng.randint(12, 16))
    copies = [near_copy(text, rng.uniform(0, max_fraction), rng) for text in originals]
    return originals, copies, [jaccard(*pair) for pair in zip(originals, copies, strict=True)]
