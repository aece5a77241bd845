"""A table of several benchmarks, with the machine and the versions."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.paired import Ratio


def table(ratios: list[Ratio]) -> str:
    """Return the ratios as a Markdown table."""
    lines = ["| what | times faster | spread | ours | peer |", "| --- | --- | --- | --- | --- |"]
    for ratio in ratios:
        spread = f"{ratio.low:.2f} to {ratio.high:.2f}"
        ours, peers = (f"{value:.3g} {ratio.unit}" for value in (ratio.ours, ratio.peers))
        lines.append(f"| {ratio.name} | **{ratio.median:.2f}** | {spread} | {ours} | {peers} |")
    return "\n".join(lines)


def run(program: str, purpose: str, title: str, modules: Sequence[str], arguments: list[str]) -> int:
    """Measure every module in a package of ``benchmarks``, or only those in ``--only``, and print the table.

    ``program`` is ``python -m benchmarks.PACKAGE``.

    Returns 0 if every target is met, otherwise 1.
    """
    parser = argparse.ArgumentParser(prog=program, description=purpose)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds")
    parser.add_argument("--only", choices=modules, action="append", help="this benchmark (may be repeated)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    chosen = parser.parse_args(arguments)
    ratios: list[Ratio] = []
    for name in chosen.only or modules:
        print(f"{name} …", file=sys.stderr, flush=True)
        for ratio in import_module(f"{program.split()[-1]}.{name}").measure(chosen.quick):
            print(ratio, file=sys.stderr, flush=True)
            ratios.append(ratio)
    text = f"{table(ratios)}\n\n{machine()}\n"
    print(text)
    if chosen.out:
        chosen.out.write_text(f"# {title}\n\n{text}", encoding="utf-8")
    return 0 if all(ratio.met for ratio in ratios) else 1
