"""Memory and time of the data stages by corpus size: generated text of three sizes, with all cleaning steps enabled.

The text has real words with their real frequencies, in random order. So it can have any length, and no two documents
are similar. Repeated word sequences, which would cost extra time, do not become more frequent as the text grows.
``python -m benchmarks.data.memory [--quick] [--out FILE]`` prints two numbers for each size and command: the peak
memory of all the command's processes together (proportional set size, sampled), and the speed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from artefacts.checkout import CHECKOUT
from benchmarks import corpus
from benchmarks.machine import machine

_SIZES = (5e8, 1e9, 5e9)
_QUICK = (2e7, 4e7, 8e7)
_LIMIT_MB = 2000
_RULES = [
    "data.clean.gopher_quality.enabled=true",
    "data.clean.gopher_repetition.enabled=true",
    "data.clean.near_dedup.enabled=true",
    "data.clean.line_dedup_chars=200",
    "data.clean.mask=[email,ip,phone]",
    "train.packing=best_fit",
]
_COMMANDS = (
    ("pipeline", "ingest"),
    ("pipeline", "dedup"),
    ("pipeline", "clean"),
    ("tokenizer", "train"),
    ("pipeline", "tokenize"),
    ("pipeline", "pack"),
    ("pipeline", "stats"),
    ("pipeline", "verify"),
)


def _texts(size: float) -> Iterator[str]:
    """Yield documents of about 5 KB, up to ``size`` bytes in total. Each line has four sentences of fifteen words."""
    words = [word for text in corpus.docstrings() for word in re.findall(r"(?<!\S)[A-Za-z'-]+(?=[\s.,:;])", text)]
    pool = np.array(words, dtype=object)
    random = np.random.default_rng(0)
    total = 0
    while total < size:
        drawn = pool[random.integers(0, len(pool), (15, 4, 15))]
        lines = [". ".join(" ".join(sentence) for sentence in line) + "." for line in drawn]
        text = "\n".join(lines)
        total += len(text)
        yield text


def _watched(argv: list[str]) -> tuple[float, float]:
    """Run a command. Returns its duration in seconds, and the peak memory of all its processes together in MB."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    begin, peak = time.perf_counter(), 0
    with subprocess.Popen(argv, cwd=CHECKOUT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as p:
        root = psutil.Process(p.pid)
        while p.poll() is None:
            total = 0
            try:
                for process in (root, *root.children(recursive=True)):
                    total += process.memory_full_info().pss
            except psutil.Error:
                pass
            peak = max(peak, total)
            time.sleep(0.2)
        if p.returncode:
            assert p.stderr is not None
            raise RuntimeError(f"{argv}: {p.stderr.read().decode()[-2000:]}")
    return time.perf_counter() - begin, peak / 1e6


def measure(sizes: tuple[float, ...] = _SIZES) -> list[dict]:
    """Return a row for each size and command: MB of text, command, seconds, peak MB, MB/s."""
    rows = []
    for size in sizes:
        folder = corpus.CACHE / "memory"
        shutil.rmtree(folder, ignore_errors=True)
        text = corpus.jsonl(folder / "source", _texts(size), 64)
        overrides = [f"run.root={folder}", "data.source.kind=jsonl", f"data.source.path={folder / 'source'}", *_RULES]
        for package, verb in _COMMANDS:
            argv = [
                sys.executable,
                "-m",
                package,
                verb,
                "--recipe",
                str(CHECKOUT / "configs" / "node.yaml"),
                *overrides,
            ]
            seconds, peak = _watched(argv)
            rows.append(
                {
                    "text_mb": round(text / 1e6),
                    "command": f"{package} {verb}",
                    "seconds": round(seconds, 1),
                    "peak_mb": round(peak),
                    "mb_per_second": round(text / 1e6 / seconds, 1),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
        shutil.rmtree(folder)
    return rows


def table(rows: list[dict]) -> str:
    """Return a Markdown table with a row per command: peak and speed at every size, and how the time grows.

    The growth is the exponent p in seconds ~ MB ** p, so 1 is linear. It compares only the last two sizes, because at
    the first size, starting the processes takes a large part of the time.
    """
    sizes = sorted({row["text_mb"] for row in rows})
    lines = [
        f"| command | {' | '.join(f'{size} MB: peak, speed' for size in sizes)} | growth |",
        f"| --- |{' --- |' * (len(sizes) + 1)}",
    ]
    for package, verb in _COMMANDS:
        here = {row["text_mb"]: row for row in rows if row["command"] == f"{package} {verb}"}
        cells = [f"{here[size]['peak_mb']} MB, {here[size]['mb_per_second']} MB/s" for size in sizes]
        times = np.log([here[size]["seconds"] for size in sizes[-2:]])
        growth = float(np.diff(times)[0] / np.diff(np.log(sizes[-2:]))[0])
        lines.append(f"| {package} {verb} | {' | '.join(cells)} | {growth:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data.memory", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20, 40 and 80 MB")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    chosen = parser.parse_args(arguments)
    rows = measure(_QUICK if chosen.quick else _SIZES)
    worst = max(rows, key=lambda row: row["peak_mb"])
    met = worst["peak_mb"] <= _LIMIT_MB
    verdict = f"Worst peak {worst['peak_mb']} MB ({worst['command']}), {'within' if met else 'ABOVE'} {_LIMIT_MB} MB"
    text = f"{table(rows)}\n\n{verdict}\n\n{machine()}\n"
    print(text)
    if chosen.out:
        chosen.out.write_text(f"# Memory and time of the data stages as a corpus grows\n\n{text}", encoding="utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
