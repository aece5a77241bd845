"""All per-document cleaning steps, applied to columns of documents.

The order is: normalization (newlines, mojibake, Unicode form, control characters), length, language, C4, Gopher's
quality and repetition rules, masking, decontamination, and length again if texts may have been edited. Each rule sees
only the documents that no earlier rule dropped.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as compute

from configs.schema.clean import CleanSection
from pipeline.cleaning import c4, column, gopher_quality, gopher_repetition, pii
from pipeline.cleaning.column import Fault
from pipeline.cleaning.decontamination import Contamination
from pipeline.cleaning.language import Languages
from pipeline.cleaning.normalize import Normalizer
from pipeline.cleaning.words import Vocabulary

TOO_SHORT = "shorter than data.clean.min_chars"
TOO_LONG = "longer than data.clean.max_chars"

#: Size of the text that word-based rules process at a time, in bytes. Their arrays then fit in the CPU cache.
_SLICE = 1 << 19


class Cleaned(NamedTuple):
    """Documents after cleaning, in the same order.

    Attributes:
        texts: the cleaned texts. For a dropped document, the text as judged by the rule that dropped it.
        reasons: why each document is dropped, with the recipe key, or null if it is kept.
        masked: kind of personal data -> number of replacements, in the documents that reach the masking step.
    """

    texts: pyarrow.LargeStringArray
    reasons: pyarrow.StringArray
    masked: dict[str, int]


class CleanedTargets(NamedTuple):
    """The documents' targets after cleaning, and the number of replacements for each kind of personal data."""

    texts: pyarrow.LargeStringArray
    masked: dict[str, int]


class Cleaner:
    """Cleans columns of texts. Create it only once per process, because it loads the models and the vocabulary.

    Attributes:
        warnings: messages about the rules' limitations under these settings.
    """

    def __init__(self, section: CleanSection) -> None:
        """Load the models and evaluation texts that the rules need.

        Raises:
            RequestError: an optional package is missing, or the evaluation texts are missing or unusable.
        """
        self._section = section
        self._normalizer = Normalizer(section.unicode, section.fix_text)
        self._languages = Languages(section.languages, section.min_language_score) if section.languages else None
        by_word = section.c4, section.gopher_quality, section.gopher_repetition
        self._vocabulary = Vocabulary() if any(rules.enabled for rules in by_word) else None
        self._contamination = Contamination(section.decontaminate) if section.decontaminate.path else None
        self.warnings = self._contamination.warnings if self._contamination else []

    def __call__(self, texts: pyarrow.Array) -> Cleaned:
        """Clean a batch of a few MB. Nulls are treated as empty texts."""
        state = _State(self._normalizer(column.large(texts)))
        state.drop(self._lengths(state.kept()))
        if self._languages:
            state.drop(self._languages.faults(state.kept()))
        self._judge_words(state)
        masked = pii.mask(state.kept(), self._section.mask)
        if self._section.mask:
            state.edit(masked.texts)
        if self._contamination:
            state.drop(_joined([self._contamination.faults(part) for part in _slices(state.kept())]))
        if self._section.c4.enabled or self._section.mask:
            state.drop(self._lengths(state.kept()))
        return Cleaned(state.texts, state.reasons(), masked.counts)

    def targets(self, texts: pyarrow.LargeStringArray) -> "CleanedTargets":
        """Normalize targets and mask personal data in them. Nulls stay null, and no documents are dropped."""
        is_valid = texts.is_valid()
        masked = pii.mask(self._normalizer(column.large(texts.filter(is_valid))), self._section.mask)
        return CleanedTargets(compute.replace_with_mask(texts, is_valid, masked.texts), masked.counts)

    def _lengths(self, texts: pyarrow.LargeStringArray) -> list[Fault]:
        lengths = column.lengths(texts)
        return [
            Fault(TOO_SHORT, lengths < max(self._section.min_chars, 1)),
            Fault(TOO_LONG, lengths > self._section.max_chars),
        ]

    def _judge_words(self, state: "_State") -> None:
        """Apply C4's and Gopher's rules."""
        if self._vocabulary is None:
            return
        if self._section.c4.enabled:
            judged = [c4.judge(part, self._section.c4, self._vocabulary) for part in _slices(state.kept())]
            if judged:
                state.edit(pyarrow.concat_arrays([part.texts for part in judged]))
                state.drop(_joined([part.faults for part in judged]))
        if self._section.gopher_quality.enabled or self._section.gopher_repetition.enabled:
            state.drop(_joined([self._gopher(part, self._vocabulary) for part in _slices(state.kept())]))

    def _gopher(self, texts: pyarrow.LargeStringArray, vocabulary: Vocabulary) -> list[Fault]:
        words, faults = vocabulary.words(texts), []
        if self._section.gopher_quality.enabled:
            faults += gopher_quality.faults(texts, words, vocabulary, self._section.gopher_quality)
        if self._section.gopher_repetition.enabled:
            faults += gopher_repetition.faults(texts, words, vocabulary, self._section.gopher_repetition)
        return faults


class _State:
    """The working state of a batch of documents during cleaning.

    Attributes:
        texts: the current texts of all documents.
    """

    def __init__(self, texts: pyarrow.LargeStringArray) -> None:
        self.texts = texts
        self._kept = np.arange(len(texts))
        self._names: list[str] = []
        # For each document, the index of its reason, or -1 if it is kept.
        self._reasons = np.full(len(texts), -1, np.int32)

    def kept(self) -> pyarrow.LargeStringArray:
        """Return the texts that have not been dropped."""
        return self.texts if len(self._kept) == len(self.texts) else self.texts.take(pyarrow.array(self._kept))

    def edit(self, texts: pyarrow.LargeStringArray) -> None:
        """Replace the texts that have not been dropped."""
        if len(self._kept) == len(self.texts):
            self.texts = texts
            return
        chosen = np.zeros(len(self.texts), bool)
        chosen[self._kept] = True
        self.texts = compute.replace_with_mask(self.texts, pyarrow.array(chosen), texts)

    def drop(self, faults: list[Fault]) -> None:
        """Drop the documents that have a fault. A document's first fault becomes its reason."""
        for reason, mask in faults:
            self._names.append(reason)
            at = self._kept[mask]
            self._reasons[at[self._reasons[at] < 0]] = len(self._names) - 1
        self._kept = self._kept[self._reasons[self._kept] < 0]

    def reasons(self) -> pyarrow.StringArray:
        """Return the reason for dropping each document, or null if it is kept."""
        numbers = pyarrow.array(self._reasons, mask=self._reasons < 0)
        return pyarrow.array(self._names, pyarrow.string()).take(numbers)


def _slices(texts: pyarrow.LargeStringArray) -> Iterator[pyarrow.LargeStringArray]:
    """Yield the texts in slices of about ``_SLICE`` bytes."""
    offsets = column.view(texts).offsets
    ends = np.searchsorted(offsets, np.arange(_SLICE, offsets[-1] + _SLICE, _SLICE))
    places = np.unique(np.concatenate([[0], np.minimum(ends, len(texts)), [len(texts)]]))
    for start, stop in zip(places[:-1].tolist(), places[1:].tolist(), strict=True):
        yield texts.slice(start, stop - start)


def _joined(parts: list[list[Fault]]) -> list[Fault]:
    """Concatenate the masks of each fault over all slices. Every slice lists the same faults in the same order."""
    return [Fault(rules[0].reason, np.concatenate([rule.mask for rule in rules])) for rules in zip(*parts, strict=True)]
