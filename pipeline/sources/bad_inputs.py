"""Inputs that could not be read: counts and examples by reason, and the number of bytes lost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from artefacts.errors import RequestError, spelled
from pipeline.sources import signatures

#: Number of examples per reason to show in a message, and number to record.
_SHOWN = 3
_RECORDED = 100

#: Prefix of a reason -> what to do about such inputs. ``{key}`` is the source's recipe key.
_HINTS = {
    "invalid ": "set {key}.encoding (such as latin-1; for text, jsonl, csv and parallel)",
    "field ": "set {key}.text_field, or remove the records without text in that field",
    "target field ": "set {key}.target_field, or remove the records without a target in that field",
    "empty target": "give every text a target, or remove the texts without one",
    "a JSON array": "write one record per line, for example with `jq -c .[]`",
    "a record with too ": "set {key}.delimiter, or quote the fields that contain it",
    "malformed ": "check that {key}.kind is the format of these files",
    "unreadable file": "download these files again, or repair or remove them (the name of an uncompressed file must "
    "not end in .gz, .xz or .zst)",
    **signatures.HINTS,
}


class NoneGoodError(BaseException):
    """Raised when ``BadInputs.patience`` inputs were tried and none of them could be read.

    This is not an ``Exception``, because sources that read over the network retry after any ``Exception``.
    """


@dataclass
class BadInputs:
    """Counts of good and unreadable inputs in a source or in one of its parts.

    Attributes:
        good: number of inputs that were read. An input is a record or a file, depending on the source.
        reasons: reason -> number of inputs that could not be read.
        examples: reason -> the first locations where it occurred.
        bytes: number of the source's stored bytes, including lost bytes.
        lost_bytes: approximate bytes not read. A damaged file is one input, but can hold thousands of records.
        patience: give up if this many inputs were tried and none could be read. None means never.
        hints: prefix of a reason -> what to do about such inputs.
    """

    good: int = 0
    bytes: int = 0
    lost_bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    patience: int | None = None
    hints: Mapping[str, str] = field(default_factory=lambda: _HINTS)

    def add(self, reason: str, where: str, lost: int = 0) -> None:
        """Count an input that could not be read, and the stored bytes lost. Invalid UTF-8 in the arguments is escaped.

        Raises:
            NoneGoodError: ``patience`` has run out.
        """
        reason, where = spelled(reason), spelled(where)
        self.lost_bytes += lost
        self.reasons[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _RECORDED:
            examples.append(where)
        if self.patience is not None and not self.good and sum(self.reasons.values()) >= self.patience:
            raise NoneGoodError

    def merge(self, other: dict[str, Any]) -> None:
        """Add the counts from another part of the same source. ``other`` is the result of ``dump``."""
        self.good += other["good"]
        self.bytes += other["bytes"]
        self.lost_bytes += other["lost_bytes"]
        self.reasons.update(other["reasons"])
        for reason, places in other["examples"].items():
            examples = self.examples.setdefault(reason, [])
            examples.extend(places[: _RECORDED - len(examples)])

    def dump(self) -> dict[str, Any]:
        """Return the counts as a JSON value."""
        return {
            "good": self.good,
            "bytes": self.bytes,
            "lost_bytes": self.lost_bytes,
            "reasons": dict(self.reasons),
            "examples": self.examples,
        }

    def _shown(self, reason: str) -> str:
        return "; ".join(self.examples[reason][:_SHOWN])

    def _hints_for(self, key: str) -> str:
        """Return hints on how to fix the unreadable inputs, starting with the most frequent reason."""
        reasons = [reason for reason, _ in self.reasons.most_common()]
        hints = [hint for reason in reasons for begin, hint in self.hints.items() if reason.startswith(begin)]
        hints = [hint.replace("{key}", key) for hint in dict.fromkeys(hints)]
        # If nothing could be read, a higher limit wouldn't help.
        return ", or ".join([*hints, *(["raise data.max_bad_fraction"] if self.good else [])])

    def check(self, limit: float, name: str, key: str = "data.source") -> None:
        """Check that few enough inputs and bytes are unreadable, and print the number of skipped inputs by reason.

        Args:
            limit: maximum fraction of unreadable inputs, and of lost bytes (``data.max_bad_fraction``).
            name: name of the source, for messages.
            key: the source's recipe key, for hints.

        Raises:
            RequestError: a fraction is above ``limit``, or nothing at all could be read.
        """
        bad = sum(self.reasons.values())
        total = bad + self.good
        if not total:
            raise RequestError(f"{name}: there is nothing to read: check this source's settings in the recipe")
        lost = min(self.lost_bytes / self.bytes, 1.0) if self.bytes else 0.0
        if not self.good or bad > limit * total or lost > limit:
            reasons = "; ".join(
                f"{reason}: {count:,} ({self._shown(reason)})" for reason, count in self.reasons.items()
            )
            hints = self._hints_for(key)
            raise RequestError(
                f"{name}: {bad:,} of {total:,} inputs cannot be read{self._above(limit, bad / total, lost)}: {reasons}"
                f"{hints and f': {hints}'}"
            )
        for reason, count in self.reasons.items():
            print(f"{spelled(name)}: skipped {count:,} of {total:,} inputs: {reason} ({self._shown(reason)})")

    def _above(self, limit: float, bad: float, lost: float) -> str:
        """Describe the fractions that exceed the limit, or return "" if no input is good, since no limit would help."""
        if not self.good:
            return ""
        fractions = [(f"{100 * bad:.3g}% of the inputs", bad), (f"about {100 * lost:.3g}% of the bytes", lost)]
        shown = " and ".join(text for text, fraction in fractions if fraction > limit)
        return f" ({shown}), above data.max_bad_fraction ({limit:g})"
