"""Inputs that could not be read: counted by reason, with the first places of each."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from configs.errors import RequestError

#: Places of a reason that are named in a message, and that are kept to be looked up.
_SHOWN = 3
_KEPT = 100


@dataclass
class BadInputs:
    """Counts of one reading.

    Attributes:
        good: inputs (records or files, whatever the source reads one by one) that were read.
        reasons: reason -> inputs that were not.
        examples: reason -> the first places it was met.
    """

    good: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Count an input that could not be read; what UTF-8 cannot hold of either text is spelt out."""
        reason, where = _writable(reason), _writable(where)
        self.reasons[reason] += 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < _KEPT:
            kept.append(where)

    def merge(self, other: dict[str, Any]) -> None:
        """Add what ``dump`` gave for another part of the same source."""
        self.good += other["good"]
        self.reasons.update(other["reasons"])
        for reason, places in other["examples"].items():
            kept = self.examples.setdefault(reason, [])
            kept.extend(places[: _KEPT - len(kept)])

    def dump(self) -> dict[str, Any]:
        """The counts as a JSON value."""
        return {"good": self.good, "reasons": dict(self.reasons), "examples": self.examples}

    def _lines(self) -> list[str]:
        shown = {reason: "; ".join(places[:_SHOWN]) for reason, places in self.examples.items()}
        return [f"{reason}: {count:,} ({shown[reason]})" for reason, count in self.reasons.items()]

    def check(self, most: float, what: str) -> None:
        """Refuse a source with too many of them; print the others, a line for each reason.

        Raises:
            RequestError: their share is above ``most``, or nothing at all was read.
        """
        bad = sum(self.reasons.values())
        if not self.good and not bad:
            raise RequestError(f"{what}: nothing to read there: check data.source")
        if not self.good or bad > most * (bad + self.good):
            raise RequestError(
                f"{what}: {bad:,} of {bad + self.good:,} inputs cannot be read, "
                f"above data.max_bad_fraction ({most:g}): {'; '.join(self._lines())}"
            )
        for line in self._lines():
            print(f"{_writable(what)}: left out: {line}")


def _writable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
