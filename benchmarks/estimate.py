"""``make bench-estimate``: compare the estimated memory with the measured peak of real training, in one table.

    python -m benchmarks.estimate [--device cpu|cuda] [--grid] [--only NUMBER] [--out FILE]

Each point trains for a few steps on synthetic tokens in new processes, with the same recipe, engine, trainer and
optimizer as ``make pretrain``. On CPU, the measurement is how much a rank's resident memory grows between joining the
process group and its peak, with an allocator that returns freed memory. The rank whose memory grows most counts. On a
GPU, it is the peak of the memory that PyTorch allocated. Reserved memory is shown too. The estimate depends only on the
recipe.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from artefacts.checkout import CHECKOUT
from configs.load import load_recipe
from configs.schema import Recipe
from training.estimate import memory
from training.estimate.topology import topology_of

RECIPE = Path(__file__).with_name("estimate.yaml")
#: With an error of this many percent or more, the benchmark fails.
TARGET = 10.0
_SECONDS = 600


def _grid() -> list[list[str]]:
    """Return every combination of ZeRO stage, checkpointing and expert-parallel size on two ranks. Stage 0 is fp32."""
    half = "bf16" if _has_bf16() else "fp32"
    return [
        [
            "launch.processes=2",
            f"train.zero_stage={stage}",
            f"train.precision={half if stage else 'fp32'}",
            f"train.activation_checkpointing={mode}",
            f"train.expert_parallel={size}",
        ]
        for stage in range(4)
        for mode in ("none", "selective", "full")
        for size in (1, 2)
    ]


def _has_bf16() -> bool:
    """Return whether oneDNN computes bf16 products here. Without AVX-512, PyTorch takes ten minutes per step."""
    return "avx512bw" in Path("/proc/cpuinfo").read_text()


#: A different shape from the one that the estimate's constants were measured on.
_OTHER = [
    "model.hidden_size=768",
    "model.num_hidden_layers=5",
    "model.moe_intermediate_size=256",
    "model.n_routed_experts=32",
    "model.num_experts_per_tok=6",
    "model.q_lora_rank=null",
    "tokenizer.vocab_size=32000",
]


def _cpu_points() -> list[list[str]]:
    """Return every other grid point, which still covers every pair of values on two axes, and some further points."""
    grid = _grid()
    chosen = [grid[i] for i in range(len(grid)) if (i // 6 + i // 2 + i) % 2 == 0]
    two = "launch.processes=2"
    others = [
        [two, "train.zero_stage=1", "train.precision=fp32", "train.micro_batch=2"],
        [two, "train.zero_stage=2", "train.precision=fp32", "train.activation_checkpointing=full"],
        [two, "train.zero_stage=3", "train.precision=fp32", "train.expert_parallel=1"],
        [
            two,
            "train.zero_stage=1",
            "train.micro_batch=2",
            "train.context_length=1024",
            "train.activation_checkpointing=full",
        ],
        ["train.zero_stage=1", "model.num_nextn_predict_layers=1", "train.activation_checkpointing=selective"],
        [two, "train.zero_stage=1", "train.save_every=1", "train.expert_parallel=1"],
        [two, "train.zero_stage=1", "train.optimizer.name=sgd", "train.activation_checkpointing=full"],
        [two, "train.zero_stage=1", "train.micro_batch=2", *_OTHER],
        [two, "train.zero_stage=2", "train.activation_checkpointing=selective", "train.expert_parallel=2", *_OTHER],
    ]
    if not _has_bf16():
        others = [[*point, "train.precision=fp32"] for point in others]
    return [*chosen, *others]


#: The same model for one GPU, wider and with longer samples, so that state and activations take several GB each.
_WIDER = ["model.hidden_size=1024", "model.moe_intermediate_size=768", "train.context_length=2048"]


def _cuda_points() -> list[list[str]]:
    points = []
    for stage, mode, precision, samples in (
        (0, "none", "fp32", 4),
        (0, "full", "fp32", 8),
        (1, "none", "bf16", 4),
        (1, "selective", "bf16", 8),
        (1, "full", "bf16", 16),
        (2, "none", "bf16", 4),
        (2, "full", "bf16", 8),
        (3, "selective", "bf16", 8),
        (3, "full", "bf16", 16),
    ):
        keys = [f"zero_stage={stage}", f"activation_checkpointing={mode}", f"micro_batch={samples}"]
        keys.append(f"precision={precision}")
        batch = f"train.global_batch_tokens={2048 * 16}"
        points.append([*_WIDER, batch, *(f"train.{key}" for key in keys), "launch.device=cuda"])
    # With several micro-batches per step, and with only one.
    offloaded = [(1, "full", 16), (2, "full", 16), (2, "selective", 4), (3, "full", 8)]
    for stage, mode, samples in offloaded:
        keys = [f"zero_stage={stage}", f"activation_checkpointing={mode}", f"micro_batch={samples}"]
        keys.append("offload_optimizer=cpu")
        points.append([*_WIDER, batch, *(f"train.{key}" for key in keys), "launch.device=cuda"])
    return points


@dataclass(frozen=True)
class Point:
    """A training run with its estimated and measured memory and, on a GPU, its reserved memory, all in bytes."""

    name: str
    state: float
    estimated: float
    measured: float
    reserved: float = 0.0

    @property
    def error(self) -> float:
        """The relative error of the estimate, in percent."""
        return 100 * (self.estimated / self.measured - 1)


def measure(overrides: Sequence[str], device: Literal["cpu", "cuda"], environment: dict[str, str]) -> Point:
    """Train a point and estimate its memory.

    Raises:
        RuntimeError: the training failed; the message has the end of its output.
    """
    recipe = load_recipe(RECIPE, list(overrides))
    topology = topology_of(recipe, device, recipe.micro_batch)
    estimated = memory(recipe, device)
    state_parts = ("weights", "master weights", "gradients", "optimizer state")
    state = recipe.ranks * sum(estimated.parts[part] for part in state_parts)
    with tempfile.TemporaryDirectory() as folder:
        grown = _train(overrides, recipe.ranks, Path(folder), {**environment, "DS_ACCELERATOR": device})
    train = recipe.train
    name = (
        f"ZeRO {train.zero_stage} {train.precision}, {train.activation_checkpointing}, "
        f"EP {recipe.expert_parallel} of {recipe.ranks}, {recipe.micro_batch} x {train.context_length}"
    )
    extra = [
        text
        for text, applies in (
            ("accumulated", topology.accumulates),
            ("saving", train.save_every),
            (train.optimizer.name, train.optimizer.name != "adamw"),
            ("offloaded", train.offload_optimizer != "none"),
            ("MTP", recipe.model.num_nextn_predict_layers),
        )
        if applies
    ]
    peaks = [grown[rank]["peak"] for rank in range(recipe.ranks)]
    return Point(", ".join([name, *extra]), state, estimated.peak, max(peaks), max(g.get("reserved", 0) for g in grown))


def _train(overrides: Sequence[str], ranks: int, folder: Path, environment: dict[str, str]) -> list[dict[str, float]]:
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    argv += ["-m", "benchmarks.estimate", "--train", str(folder), *overrides]
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    operators = os.environ.get("TORCH_EXTENSIONS_DIR", str(CHECKOUT / ".cache" / "torch_extensions"))
    merged = {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": operators,
        **environment,
    }
    done = subprocess.run(argv, env=merged, capture_output=True, text=True, timeout=_SECONDS, cwd=CHECKOUT, check=False)
    paths = [folder / f"rank{rank}.json" for rank in range(ranks)]
    if not all(path.is_file() for path in paths):
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr[-4000:]}")
    return [json.loads(path.read_text()) for path in paths]


def train(folder: Path, overrides: list[str]) -> None:
    """Run one rank of a point, and write its peak memory to a file."""
    import deepspeed
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    import torch
    import torch._dynamo

    from artefacts.signals import StopRequest
    from training import job
    from training.models.deepseek import init_weights
    from training.runs import TrainingRun

    recipe = load_recipe(RECIPE, overrides)
    baseline: list[int] = []
    build_model = job.build_model

    def after_joining(*arguments: Any) -> Any:
        baseline.append(_baseline())
        return build_model(*arguments)

    job.build_model = after_joining
    point = job.Job(
        run=TrainingRun("pretrain", folder / "run", {"point": True}, {}),
        train=recipe.train,
        global_batch=recipe.train.global_batch,
        micro_batch=recipe.micro_batch,
        data=_synthetic(recipe),
        validation=[],
        check_inputs=lambda: None,
        init_weights=lambda model, experts: init_weights(model, recipe.run.seed, experts),
    )
    job.run_job(recipe, point, StopRequest())
    if torch.cuda.is_available() and os.environ["DS_ACCELERATOR"] == "cuda":
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    else:
        peak, reserved = _status("VmHWM") - baseline[0], 0
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps({"peak": peak, "reserved": reserved}))


def _synthetic(recipe: Recipe) -> Any:
    """Return data of random tokens. Their routing is roughly balanced, as the estimate assumes."""
    import torch

    from training.data.batch import Batch

    class SyntheticTokens:
        def micro_batches(self, step: int, rank: int, ranks: int, micro_batch: int) -> list[Batch]:
            size, length = recipe.train.global_batch // ranks, recipe.train.context_length
            drawn = torch.Generator().manual_seed(step * ranks + rank)
            tokens = torch.randint(0, recipe.vocab_size, (size, length + 1), generator=drawn)
            inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
            return [Batch(*pair) for pair in zip(inputs.split(micro_batch), labels.split(micro_batch), strict=True)]

    return SyntheticTokens()


def _baseline() -> int:
    """Reset the peak of resident memory, and return the current value."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def table(points: Sequence[Point], device: str) -> str:
    """Return the points as a Markdown table, with the worst error below it."""
    head = "| what | state | estimated | measured | error |" + (" reserved |" if device == "cuda" else "")
    lines = [head, "| --- |" + " --- |" * (head.count("|") - 2)]
    for point in points:
        cells = [f"{size / 1e9:.2f} GB" for size in (point.state, point.estimated, point.measured)]
        cells += [f"{point.error:+.1f}%"] + ([f"{point.reserved / 1e9:.2f} GB"] if device == "cuda" else [])
        lines.append(f"| {point.name} | " + " | ".join(cells) + " |")
    worst = max(points, key=lambda point: abs(point.error))
    return "\n".join(lines) + f"\n\nworst error {abs(worst.error):.1f}% ({worst.name})"


#: Makes the allocator return freed blocks of 64 kB and more, so that resident memory is memory in use.
_RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536"}
#: Makes the allocator keep freed memory, as launch/plan.py does for real runs.
_KEEPING = {"MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_MMAP_MAX_": "0"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--grid", action="store_true", help="CPU: the complete grid of stages, checkpointing and sizes")
    parser.add_argument("--only", type=int, action="append", help="number of a point, from 0 (may be repeated)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.train:
        train(chosen.train, chosen.overrides)
        return 0
    device = chosen.device
    listed = _cuda_points() if device == "cuda" else _grid() if chosen.grid else _cpu_points()
    points, failed = [], 0
    for number in chosen.only or range(len(listed)):
        try:
            points.append(measure(listed[number], device, _RETURNING if device == "cpu" else {}))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failed += 1
            print(f"point {number} failed: {' '.join(listed[number])}: {error}", file=sys.stderr, flush=True)
            continue
        point = points[-1]
        print(f"{number:2} {point.name}: {point.error:+.1f}%", file=sys.stderr, flush=True)
    if not points:
        return 1
    text = table(points, device)
    if device == "cpu":
        text += "\n\n" + _more_as_launched(listed[0], points[0]) if not chosen.only else ""
    from benchmarks.machine import machine

    text += f"\n\n{machine()}\n"
    print(text)
    if chosen.out:
        chosen.out.write_text(f"# Estimated and measured memory\n\n{text}", encoding="utf-8")
    if wrong := [point.name for point in points if not abs(point.error) < TARGET]:
        print(f"an error of {TARGET:.0f}% or more: {'; '.join(wrong)}", file=sys.stderr)
    return 1 if failed or wrong else 0


def _more_as_launched(overrides: Sequence[str], point: Point) -> str:
    """Say how much more memory the first point takes if the allocator keeps freed memory, as in real runs."""
    kept = measure(overrides, "cpu", _KEEPING).measured
    return (
        f"With the allocator of real runs, which keeps freed memory, {point.name} takes {kept / 1e9:.2f} GB, "
        f"{100 * (kept / point.measured - 1):+.1f}%."
    )


if __name__ == "__main__":
    sys.exit(main())
