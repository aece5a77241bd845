"""A command that runs out of memory fails with status 1 and one line, which says what to change."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.load import load_recipe
from tests.support.fork_server import run_command
from tests.support.paths import CHECKOUT
from training.__main__ import main
from training.commands.out_of_memory import explain, ran_out
from training.estimate.fitting import relief
from training.estimate.memory import memory

RECIPE = "configs/teaching/gpt-oz.yaml"
ON_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "3000000000 bytes. Error code 12 (Cannot allocate memory)"
)
ON_GPU = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.19 GiB of which 1.1 GiB is free."
)
#: Runs the command with an address space that is larger by this many bytes than all imports need. Libraries have enough
#: room then, but one larger allocation fails, whatever memory the machine has.
LIMITED = """
import resource, sys
import deepspeed, psutil, pyarrow.parquet
from configs import command
from training.__main__ import main
size = psutil.Process().memory_info().vms + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (size, size))
command.run(main)
"""


@pytest.mark.parametrize(
    "error",
    [ON_CPU, ON_GPU, MemoryError(), RuntimeError("MPS backend out of memory"), RuntimeError("std::bad_alloc"),
     OSError(errno.ENOMEM, "Cannot allocate memory")],
)  # fmt: skip
def test_out_of_memory_errors_are_recognized(error: BaseException) -> None:
    assert ran_out(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), ValueError("out of memory"), OSError(errno.ENOSPC, "No space left")]
)
def test_other_errors_are_not(error: BaseException) -> None:
    assert not ran_out(error)


@pytest.mark.parametrize(
    ("running", "pattern"),
    [
        ("generate", r"lower generate\.max_new_tokens \(100\)"),
        ("evaluate", r"lower evaluate\.batch \(16\)"),
        ("evaluate attention", r"shorten --text$"),
        (
            "pretrain",
            r"set train\.micro_batch=\d+; .*train\.activation_checkpointing=full and a shorter train\.context_length",
        ),
        ("compare optimizers", r"train\.micro_batch=\d+"),
        ("report", r"free some memory$"),
    ],
)
def test_the_advice_depends_on_the_command(running: str, pattern: str) -> None:
    message = explain(ON_CPU, load_recipe(RECIPE), running)
    assert re.match(
        r"out of memory: this process used [\d.]+ GB of the host's memory and requested 3\.00 GB more: ", message
    )
    assert re.search(pattern, message) and "\n" not in message
    assert "requested 2.15 GB more" in explain(ON_GPU, load_recipe(RECIPE), running)


@pytest.mark.parametrize("micro_batch", [32, 4, 1])
def test_advice_always_needs_less_memory(micro_batch: int) -> None:
    """This holds even if there is enough memory by the estimate."""
    recipe = load_recipe(RECIPE, [f"train.micro_batch={micro_batch}", "launch.processes=1"])
    advice = relief(recipe, 10**15, "cpu")
    changes = dict(re.findall(r"(train\.\w+)=(\w+)", advice.partition(";")[0]))
    if changes:
        changed = load_recipe(RECIPE, ["launch.processes=1", *(f"{key}={value}" for key, value in changes.items())])
        assert memory(changed, "cpu").peak < 0.9 * memory(recipe, "cpu").peak
    else:
        assert micro_batch == 1 and advice.startswith("nothing fits on 1 rank: use more ")


def test_advice_states_the_number_of_ranks() -> None:
    recipe = load_recipe(RECIPE, ["train.micro_batch=1", "launch.processes=2"])
    assert relief(recipe, 10**15, "cpu").startswith("nothing fits on 2 ranks: use more (launch.nodes), ")


def test_other_errors_are_raised_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr("training.commands.generate.generate", fails)
    with pytest.raises(RuntimeError, match="size mismatch"):
        main(["generate", "--recipe", RECIPE])


@pytest.mark.engine
def test_a_real_allocation_that_fails(tmp_path: Path) -> None:
    """Training with 19 GB of activations in 8 GB of address space gives one line on stderr and status 1."""
    arguments = ["--recipe", RECIPE, f"run.root={tmp_path}", "data.source.packages=[json]", "model.hidden_size=576"]
    run_command(["pipeline", "run", *arguments])
    words = ["pretrain", *arguments, "launch.processes=1", f"train.global_batch_tokens={2**23}"]
    argv = [sys.executable, "-c", LIMITED, str(8 * 10**9), *words]
    # Every thread would reserve its own address space.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=CHECKOUT, env=one_thread, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    # The numbers depend on this machine.
    pattern = (
        r"error: out of memory: this process used [\d,.]+ GB of the host's memory and requested 19\.33 GB more: \S"
    )
    assert re.match(pattern, line), line


def test_on_a_gpu_its_own_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "is_available": True,
        "is_initialized": True,
        "mem_get_info": (3 * 10**9, 80 * 10**9),
        "max_memory_allocated": 70 * 10**9,
        "memory_reserved": 2 * 10**9,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    message = explain(ON_GPU, load_recipe(RECIPE), "generate")
    assert message.startswith(
        "out of memory: this process used 70.00 GB of the GPU's 80.00 GB and requested 2.15 GB more:"
    )
