"""The pretraining loader: tokens per second from a warm cache, and the time to the first batch from 10 billion tokens.

    python -m benchmarks.data.loader [--quick]

Millrace reads shuffled samples from three weighted sources, with document boundaries. It is compared with the simplest
possible loader, nanoGPT's: one file, random windows, no boundaries, no epochs. Other rows compare a result with a fixed
number, such as 100 M tokens/s.
"""

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.paired import Ratio, compare
from pipeline.tokens.indexed_dataset import IndexedDatasetWriter
from pipeline.tokens.packing import pack_shard
from training.data.batch import Samples
from training.data.packed import PackedSamples
from training.data.pretraining import PretrainingData
from training.data.windows import TokenWindows

END, PAD = 2, 3
#: Samples per micro-batch on each rank, and samples per step.
MICRO, GLOBAL = 32, 512
#: The numbers that the loader is compared with: its speed, and the time and memory of the first batch.
TOKENS_PER_SECOND, FIRST_SECONDS, FIRST_BYTES = 100e6, 1.0, 200e6
WEIGHTS = {"web": 0.7, "code": 0.2, "books": 0.1}
_SPARSE_SHARDS, _SHARD_TOKENS, _SHARD_DOCUMENTS = 100, 100_000_000, 80_000


def measure(quick: bool = False) -> list[Ratio]:
    """Run all comparisons. ``quick`` uses less data and fewer rounds."""
    tokens, steps, rounds = (6_000_000, 20, 3) if quick else (60_000_000, 60, 5)
    rows = []
    with tempfile.TemporaryDirectory(prefix="loader-") as name:
        folder = Path(name)
        _write_sources(folder / "tokens", tokens)
        plain = np.memmap(folder / "tokens" / "web" / "train-00000.bin", np.uint16, "r")
        for length in (1024, 2048):
            windows = {source: TokenWindows(folder / "tokens" / source, "train", length, END) for source in WEIGHTS}
            rows += _speed(f"windows of {length}", windows, plain, length, steps, rounds)
            _pack(folder, length)
            packed = {
                source: PackedSamples(folder / "tokens" / source, folder / f"{length}" / source, length, PAD)
                for source in WEIGHTS
            }
            rows += _speed(f"packed to {length}", packed, plain, length, steps, rounds)
        rows += _first_batch(folder / "sparse")
    return rows


def _write_sources(folder: Path, tokens: int) -> None:
    """Write three sources with two shards each. The document lengths are distributed as in web text."""
    rng = np.random.default_rng(0)
    for source in WEIGHTS:
        (folder / source).mkdir(parents=True)
        for shard in range(2):
            lengths = rng.lognormal(6.4, 1.0, tokens // 6 // 1000).astype(np.int64) + 1
            ids = rng.integers(4, 50_000, int(lengths.sum())).astype(np.uint16)
            ids[np.cumsum(lengths) - 1] = END
            writer = IndexedDatasetWriter(folder / source / f"train-{shard:05d}", np.dtype(np.uint16))
            writer.add(ids, lengths)
            writer.finish()


def _pack(folder: Path, length: int) -> None:
    for source in WEIGHTS:
        for shard in range(2):
            name = Path(source) / f"train-{shard:05d}"
            pack_shard(folder / "tokens" / name, folder / f"{length}" / name, length)


def _speed(
    name: str, sources: dict[str, Samples], plain: np.memmap, length: int, steps: int, rounds: int
) -> list[Ratio]:
    data = PretrainingData(sources, GLOBAL, 1, WEIGHTS)
    begun = iter(range(0, 1_000_000, steps))

    def ours() -> float:
        # Advance to new steps each time, as training does.
        first = next(begun)
        began = time.perf_counter()
        for step in range(first, first + steps):
            batches = data.micro_batches(step, 0, 1, MICRO)
            assert len(batches) == GLOBAL // MICRO and batches[0].starts is not None
        return time.perf_counter() - began

    def peer() -> float:
        began = time.perf_counter()
        for _ in range(steps * GLOBAL // MICRO):
            _plain_batch(plain, length)
        return time.perf_counter() - began

    for warm in (ours, peer):
        warm()
    million = steps * GLOBAL * length / 1e6
    result = compare(f"{name}, against plain windows", ours, peer, million, "M tokens/s", rounds=rounds)
    least = TOKENS_PER_SECOND / 1e6
    over = result.ours / least
    return [
        result,
        Ratio(f"{name}, against {least:g} M tokens/s", over, over, over, 1.0, result.ours, least, "M tokens/s"),
    ]


def _plain_batch(tokens: np.memmap, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random windows and their labels, gathered one row at a time."""
    places = torch.randint(len(tokens) - length, (MICRO,)).tolist()
    inputs = torch.stack([torch.from_numpy(tokens[at : at + length].astype(np.int64)) for at in places])
    labels = torch.stack([torch.from_numpy(tokens[at + 1 : at + 1 + length].astype(np.int64)) for at in places])
    return inputs, labels


def _first_batch(folder: Path) -> list[Ratio]:
    """Measure the time and memory to open 10 billion tokens and read one global batch, in a fresh process."""
    folder.mkdir()
    for shard in range(_SPARSE_SHARDS):
        _write_sparse(folder / f"train-{shard:05d}")
    command = [sys.executable, "-m", "benchmarks.data.loader", "--first-batch", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
    seconds, peak = (float(word) for word in done.stdout.split())
    return [
        _under("first batch of 10 billion tokens, time", seconds, FIRST_SECONDS, "s"),
        _under("first batch of 10 billion tokens, memory", peak / 1e6, FIRST_BYTES / 1e6, "MB"),
    ]


def _under(name: str, ours: float, most: float, unit: str) -> Ratio:
    over = most / max(ours, 1e-9)
    return Ratio(f"{name}, against {most:g} {unit}", over, over, over, 1.0, ours, most, unit)


def _write_sparse(prefix: Path) -> None:
    """Write a sparse shard, which takes almost no disk space: zeros, except for the header and the last document."""
    count = _SHARD_DOCUMENTS
    length = _SHARD_TOKENS // count
    with open(prefix.with_suffix(".bin"), "wb") as stream:
        stream.truncate(2 * _SHARD_TOKENS)
    with open(prefix.with_suffix(".idx"), "wb") as stream:
        header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, count, count + 1)
        stream.write(header)
        for at, kind, value in (
            (4 * (count - 1), "<i", length),
            (4 * count + 8 * (count - 1), "<q", 2 * (_SHARD_TOKENS - length)),
            (12 * count + 8 * count, "<q", count),
        ):
            stream.seek(len(header) + at)
            stream.write(struct.pack(kind, value))


def _resident(name: str) -> int:
    """Return one of this process's memory figures in bytes, from a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _print_first_batch(folder: Path) -> None:
    before = _resident("VmRSS")
    began = time.perf_counter()
    data = PretrainingData({"all": TokenWindows(folder, "train", 1024, END)}, GLOBAL, 1)
    batches = data.micro_batches(0, 0, 1, MICRO)
    seconds = time.perf_counter() - began
    assert len(batches) == GLOBAL // MICRO
    print(seconds, _resident("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less data, fewer rounds")
    parser.add_argument("--first-batch", type=Path, metavar="FOLDER", help="only this, in this process: seconds, bytes")
    chosen = parser.parse_args()
    if chosen.first_batch:
        _print_first_batch(chosen.first_batch)
        return
    for ratio in measure(chosen.quick):
        print(ratio)


if __name__ == "__main__":
    main()
