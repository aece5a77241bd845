"""Inputs that could not be read: counted by reason, with the first places of each, and by the bytes they take."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from artefacts.errors import RequestError, spelled
from pipeline.sources import signatures

#: Places of a reason that are named in a message, and that are kept to be looked up.
_SHOWN = 3
_KEPT = 100

#: Begin of a source's keys, as messages about any source have it.
_KEY = "data.source(s.NAME)."
#: Begin of a reason -> what to do about such inputs.
_CURES = {
    "invalid ": f"set {_KEY}encoding (such as latin-1; of text, jsonl, csv and parallel)",
    "field ": f"set {_KEY}text_field, or take away the records without a text in it",
    "target field ": f"set {_KEY}target_field, or take away the records without a target in it",
    "empty target": "give every text its target, or take those without away",
    "a JSON array": "write a record a line, such as with `jq -c .[]`",
    "a record with too ": f"set {_KEY}delimiter, or quote the fields that hold it",
    "malformed ": f"see that {_KEY}kind is what these files are",
    "unreadable file": "fetch or mend these files again, or take them away (one that is not compressed needs a name "
    "without .gz, .xz or .zst)",
    **signatures.CURES,
}


class NoneGoodError(BaseException):
    """As many inputs as ``BadInputs.patience`` were met, and none of them could be read.

    No ``Exception``: a source that reads over the network tries again after any.
    """


@dataclass
class BadInputs:
    """Counts of one reading.

    Attributes:
        good: inputs (records or files, whatever the source reads one by one) that were read.
        reasons: reason -> inputs that were not.
        examples: reason -> the first places it was met.
        bytes: stored bytes of the source that were to be read, those lost among them.
        lost_bytes: about so many of them were not read: a damaged file is one input, but may have held thousands.
        patience: of so many inputs one must be good; None: no matter.
        cures: begin of a reason -> what to do about such inputs; of inputs that are no source's, their own.
    """

    good: int = 0
    bytes: int = 0
    lost_bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    patience: int | None = None
    cures: Mapping[str, str] = field(default_factory=lambda: _CURES)

    def add(self, reason: str, where: str, lost: int = 0) -> None:
        """Count an input that could not be read, and the stored bytes lost with it; what is not UTF-8 is spelt out.

        Raises:
            NoneGoodError: it is the last that patience allows.
        """
        reason, where = spelled(reason), spelled(where)
        self.lost_bytes += lost
        self.reasons[reason] += 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < _KEPT:
            kept.append(where)
        if self.patience is not None and not self.good and sum(self.reasons.values()) >= self.patience:
            raise NoneGoodError

    def merge(self, other: dict[str, Any]) -> None:
        """Add what ``dump`` gave for another part of the same source."""
        self.good += other["good"]
        # Not in what an earlier version left.
        self.bytes += other.get("bytes", 0)
        self.lost_bytes += other.get("lost_bytes", 0)
        self.reasons.update(other["reasons"])
        for reason, places in other["examples"].items():
            kept = self.examples.setdefault(reason, [])
            kept.extend(places[: _KEPT - len(kept)])

    def dump(self) -> dict[str, Any]:
        """The counts as a JSON value."""
        return {
            "good": self.good,
            "bytes": self.bytes,
            "lost_bytes": self.lost_bytes,
            "reasons": dict(self.reasons),
            "examples": self.examples,
        }

    def _shown(self, reason: str) -> str:
        return "; ".join(self.examples[reason][:_SHOWN])

    def _cures(self) -> str:
        """What to do, for the most frequent reasons first."""
        reasons = [reason for reason, _ in self.reasons.most_common()]
        cures = [cure for reason in reasons for begin, cure in self.cures.items() if reason.startswith(begin)]
        # Where nothing is read, more patience does not help.
        return ", or ".join([*dict.fromkeys(cures), *(["raise data.max_bad_fraction"] if self.good else [])])

    def check(self, most: float, what: str) -> None:
        """Refuse a source with too many of them; print the others, a line for each reason.

        Raises:
            RequestError: their share of the inputs or of the bytes is above ``most``, or nothing at all was read.
        """
        bad = sum(self.reasons.values())
        if not self.good and not bad:
            raise RequestError(f"{what}: nothing to read there: check what the recipe says of that source")
        lost = min(self.lost_bytes / self.bytes, 1.0) if self.bytes else 0.0
        if not self.good or bad > most * (bad + self.good) or lost > most:
            share = f" (about {100 * lost:.3g} % of the bytes)" if lost else ""
            # Where nothing is read, no limit is the reason.
            limit = f", above data.max_bad_fraction ({most:g})" if self.good else ""
            why = "; ".join(f"{reason}: {count:,} ({self._shown(reason)})" for reason, count in self.reasons.items())
            cures = self._cures()
            raise RequestError(
                f"{what}: {bad:,} of {bad + self.good:,} inputs{share} cannot be read{limit}: {why}"
                f"{cures and f': {cures}'}"
            )
        for reason, count in self.reasons.items():
            inputs = f"{count:,} of {bad + self.good:,} inputs"
            print(f"{spelled(what)}: left out {inputs}: {reason} ({self._shown(reason)})")
