"""Memory that runs out ends a command with status 1 and one line, which says what to change."""

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
from training.commands.out_of_memory import ran_out, told
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
#: Run as the command, in an address space that is so much larger than what it takes to have imported everything: room
#: for all that libraries take by the way, none for one allocation above it, whatever memory the machine has.
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
def test_these_are_memory_that_ran_out(error: BaseException) -> None:
    assert ran_out(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("size mismatch"), ValueError("out of memory"), OSError(errno.ENOSPC, "No space left")]
)
def test_these_are_not(error: BaseException) -> None:
    assert not ran_out(error)


@pytest.mark.parametrize(
    ("doing", "words"),
    [
        ("generate", r"lower generate\.max_new_tokens \(100\)"),
        ("evaluate", r"lower evaluate\.batch \(16\)"),
        ("evaluate attention", r"shorten --text$"),
        (
            "pretrain",
            r"set train\.micro_batch=\d+; .*activation_checkpointing=full and a shorter train\.context_length",
        ),
        ("compare optimizers", r"train\.micro_batch=\d+"),
        ("report", r"free some$"),
    ],
)
def test_what_is_said(doing: str, words: str) -> None:
    said = told(ON_CPU, load_recipe(RECIPE), doing)
    assert re.match(
        r"out of memory: this process had [\d.]+ GB of the host's memory, and asked for 3\.00 GB more: ", said
    )
    assert re.search(words, said) and "\n" not in said
    assert "asked for 2.15 GB more" in told(ON_GPU, load_recipe(RECIPE), doing)


@pytest.mark.parametrize("micro_batch", [32, 4, 1])
def test_what_was_tried_is_never_advised(micro_batch: int) -> None:
    """Though the estimate holds that there is room enough."""
    recipe = load_recipe(RECIPE, [f"train.micro_batch={micro_batch}", "launch.processes=1"])
    said = relief(recipe, 10**15, "cpu")
    asked = dict(re.findall(r"(train\.\w+)=(\w+)", said.partition(";")[0]))
    if asked:
        changed = load_recipe(RECIPE, ["launch.processes=1", *(f"{key}={value}" for key, value in asked.items())])
        assert memory(changed, "cpu").peak < 0.9 * memory(recipe, "cpu").peak
    else:
        assert micro_batch == 1 and said.startswith("nothing fits on so few ranks")


def test_another_fault_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr("training.commands.generate.generate", fails)
    with pytest.raises(RuntimeError, match="size mismatch"):
        main(["generate", "--recipe", RECIPE])


@pytest.mark.engine
def test_a_real_allocation_that_fails(tmp_path: Path) -> None:
    """Training with activations of 19 GB in 8 GB of address space: the line on stderr, no traceback, status 1."""
    given = ["--recipe", RECIPE, f"run.root={tmp_path}", "data.source.packages=[json]", "model.hidden_size=576"]
    run_command(["pipeline", "run", *given])
    words = ["pretrain", *given, "launch.processes=1", f"train.global_batch_tokens={2**23}"]
    argv = [sys.executable, "-c", LIMITED, str(8 * 10**9), *words]
    # Each thread would reserve address space of its own.
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=CHECKOUT, env=one_thread, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    # What it had and what would fit are this machine's.
    told = r"error: out of memory: this process had [\d,.]+ GB of the host's memory, and asked for 19\.33 GB more: \S"
    assert re.match(told, line), line


def test_on_a_gpu_its_own_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, found in {
        "is_available": True,
        "is_initialized": True,
        "mem_get_info": (3 * 10**9, 80 * 10**9),
        "max_memory_allocated": 70 * 10**9,
        "memory_reserved": 2 * 10**9,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    said = told(ON_GPU, load_recipe(RECIPE), "generate")
    assert said.startswith(
        "out of memory: this process had 70.00 GB of the GPU's 80.00 GB, and asked for 2.15 GB more:"
    )
