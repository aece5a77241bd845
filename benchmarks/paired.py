"""Paired timing: our work and the peer's alternate, so that noise on the machine affects both."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Ratio(NamedTuple):
    """How many times faster ours is than the peer, and the target.

    Attributes:
        name: what was measured, and against which peer.
        median, low, high: the median, lowest and highest ratio over the rounds, each the peer's seconds over ours.
        target: the lowest acceptable ratio, or None if the ratio is for information only.
        ours, peers: our median result, and the peer's, in ``unit``.
        unit: the unit, such as MB/s.
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
    """Return the wall time of one call."""
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
    """Run both ``rounds`` times, alternating which goes first.

    Args:
        name: what is measured.
        ours: runs Millrace once, and returns the seconds that count (without setup).
        peer: the same for the peer.
        amount: amount of work in a run, so that ``amount / seconds`` is in ``unit``.
        unit: the unit, such as MB/s.
        target: the lowest acceptable ratio.
        rounds: number of pairs of runs.
    """
    pairs = []
    for number in range(rounds):
        if number % 2:
            peer_seconds = peer()
            pairs.append((ours(), peer_seconds))
        else:
            our_seconds = ours()
            pairs.append((our_seconds, peer()))
    ratios = [peer_seconds / our_seconds for our_seconds, peer_seconds in pairs]
    return Ratio(
        name,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        target,
        amount / statistics.median(our_seconds for our_seconds, _ in pairs),
        amount / statistics.median(peer_seconds for _, peer_seconds in pairs),
        unit,
    )


def better(name: str, ours: float, peers: float, unit: str) -> Ratio:
    """Compare a figure other than time, where larger is better. The ratio is ours over the peer's; the target is 1."""
    times = ours / peers
    return Ratio(name, times, times, times, 1.0, ours, peers, unit)
