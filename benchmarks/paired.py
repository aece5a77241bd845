"""Paired timing: ours and the peer's alternate, so that a noisy machine slows both."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Ratio(NamedTuple):
    """How many times faster ours is, over the rounds, and the target.

    Attributes:
        name: what was measured, and against whom.
        median, low, high: peer's seconds over ours: median, lowest and highest of the rounds.
        target: the lowest acceptable ratio; None: for information only.
        ours, peers: our and the peer's median figure in ``unit``.
        unit: such as MB/s.
    """

    name: str
    median: float
    low: float
    high: float
    target: float | None
    ours: float
    peers: float
    unit: str

    @property
    def met(self) -> bool:
        return self.target is None or self.median >= self.target

    def __str__(self) -> str:
        target = "" if self.target is None else f"  target {self.target:g}x  {'met' if self.met else 'NOT MET'}"
        return (
            f"{self.name}: {self.median:.2f}x ({self.low:.2f} to {self.high:.2f}), "
            f"{self.ours:.3g} against {self.peers:.3g} {self.unit}{target}"
        )


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def compare(
    name: str,
    ours: Callable[[], float],
    peer: Callable[[], float],
    amount: float,
    unit: str,
    target: float | None = None,
    rounds: int = 5,
) -> Ratio:
    """Run both ``rounds`` times, alternating which goes first; each call returns the seconds that count.

    Args:
        name: what is measured.
        ours: one timed run of Millrace, returning its seconds (setup excluded).
        peer: the same of the peer.
        amount: work of one run, so that ``amount / seconds`` is in ``unit``.
        unit: such as MB/s.
        target: the lowest acceptable ratio.
        rounds: pairs.
    """
    pairs = []
    for number in range(rounds):
        if number % 2:
            theirs = peer()
            pairs.append((ours(), theirs))
        else:
            own = ours()
            pairs.append((own, peer()))
    ratios = [theirs / own for own, theirs in pairs]
    return Ratio(
        name,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        target,
        amount / statistics.median(own for own, _ in pairs),
        amount / statistics.median(theirs for _, theirs in pairs),
        unit,
    )


def better(name: str, ours: float, peers: float, unit: str) -> Ratio:
    """A figure other than time, where larger is better: ours over the peer's, with a target of 1."""
    times = ours / peers
    return Ratio(name, times, times, times, 1.0, ours, peers, unit)
