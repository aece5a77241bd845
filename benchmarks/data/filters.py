"""Cleaning on one core: Gopher's rules, C4's rules and masking against datatrove, and the default cleaning.

    python -m benchmarks.data.filters

The documents come from ``corpus.web_pages``. Millrace starts with an empty vocabulary, as at the start of a run, and in
one case with the vocabulary of as many other documents. datatrove's filters use their default English tokenizer
(spaCy's blank one), which splits a document only once for both Gopher filters.
"""

from collections.abc import Callable

import pyarrow

from benchmarks import corpus
from benchmarks.paired import Ratio, compare, seconds
from configs.schema.clean import CleanSection
from pipeline.cleaning.cleaner import Cleaner
from pipeline.cleaning.normalize import normalize

_ON = {"enabled": True}
_GOPHER = CleanSection(gopher_quality=_ON, gopher_repetition=_ON)
_C4 = CleanSection(c4=_ON)
_MASK = CleanSection(mask=("email", "ip"))


def _ours(section: CleanSection, texts: list[str], before: list[str] | None = None) -> Callable[[], float]:
    """Return a function that times cleaning the texts with a new cleaner that has already cleaned ``before``."""

    def run() -> float:
        cleaner = Cleaner(section)
        cleaner(pyarrow.array(before or ["the"], pyarrow.large_string()))
        column = pyarrow.array(texts, pyarrow.large_string())
        return seconds(lambda: cleaner(column))

    return run


def _filters(texts: list[str], *names: str) -> Callable[[], float]:
    """Return a function that times datatrove's filters. If a filter drops a document, the next ones do not see it."""
    import datatrove.pipeline.filters as filters
    from datatrove.data import Document

    rules = [getattr(filters, name)() for name in names]

    def run() -> float:
        documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
        for rule in rules:
            rule.filter(Document(text="Loads the tokenizer.", id=""))
        return seconds(lambda: [all(rule.filter(document) is True for rule in rules) for document in documents])

    return run


def _formatter(texts: list[str]) -> Callable[[], float]:
    from datatrove.pipeline.formatters import PIIFormatter

    formatter = PIIFormatter()
    return lambda: seconds(lambda: [formatter.format(text) for text in texts])


def _one_by_one(texts: list[str]) -> float:
    return seconds(lambda: [normalize(text, "NFC") for text in texts])


def measure(quick: bool = False) -> list[Ratio]:
    """Compare with datatrove, on one core each. ``quick`` uses fewer documents and one round."""
    threads = pyarrow.cpu_count()
    pyarrow.set_cpu_count(1)
    try:
        return _measure(corpus.web_pages()[: 200 if quick else 500], 1 if quick else 3)
    finally:
        pyarrow.set_cpu_count(threads)


def _measure(texts: list[str], rounds: int) -> list[Ratio]:
    half = len(texts) // 2
    seen, unseen = texts[:half], texts[half:]
    size, unseen_size = (sum(len(text.encode()) for text in some) / 1e6 for some in (texts, unseen))
    gopher = "GopherQualityFilter", "GopherRepetitionFilter"

    def against(
        name: str, ours: Callable[[], float], peer: Callable[[], float], amount: float, target: float | None = None
    ) -> Ratio:
        return compare(f"{name} against datatrove", ours, peer, amount, "MB/s", target, rounds)

    return [
        against("Gopher quality and repetition", _ours(_GOPHER, texts), _filters(texts, *gopher), size, 10),
        against(
            "the same, after other documents", _ours(_GOPHER, unseen, seen), _filters(unseen, *gopher), unseen_size
        ),
        against("C4", _ours(_C4, texts), _filters(texts, "C4QualityFilter"), size),
        against("masking of e-mail and IP", _ours(_MASK, texts), _formatter(texts), size),
        compare(
            "default cleaning against its rules one document at a time",
            _ours(CleanSection(), texts),
            lambda: _one_by_one(texts),
            size,
            "MB/s",
            rounds=rounds,
        ),
    ]


def main() -> None:
    for ratio in measure():
        print(ratio)


if __name__ == "__main__":
    main()
