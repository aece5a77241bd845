"""The messages of `make` before it starts anything."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.command import DEFAULT_RECIPE
from tests.support.paths import CHECKOUT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def make(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run make as from a shell with ``more`` variables, even if make started the tests."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "PYTHON"))} | more
    return subprocess.run(["make", *words], cwd=CHECKOUT, env=kept, capture_output=True, encoding="utf-8")


def test_help_lists_every_target() -> None:
    listed = {line.split()[0] for line in make().stdout.splitlines() if line.startswith("  ")}
    text = (CHECKOUT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (phony,) = [line.split()[1:] for line in text.splitlines() if line.startswith(".PHONY:")]
    assert {*phony} - listed == {"from", "own-python", "own-python-for-tests"}


def test_the_default_recipe_is_the_one_that_hints_leave_out() -> None:
    assert f"(now {DEFAULT_RECIPE})" in make().stdout


def test_your_own_environment_without_packages(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare = tmp_path / "bare" / "bin" / "python"
    for target in ("setup", "inspect", "test"):
        done = make(target, f"PYTHON={bare}")
        first_line = done.stderr.splitlines()[0]
        assert done.returncode == 2 and first_line.startswith(f"error: PYTHON={bare} lacks torch, deepspeed, ")
        assert ("hypothesis" in first_line) == (target == "test")
    assert make("setup", f"PYTHON={sys.executable}").returncode == 0


def test_a_missing_or_outdated_python(tmp_path: Path) -> None:
    assert make("inspect", "PYTHON=/no/python").stderr.startswith("error: PYTHON=/no/python: no such program\n")
    script = (CHECKOUT / ".ci" / "environment.py").read_text(encoding="utf-8")
    old = "import sys\nsys.version_info = (3, 9, 2)\nsys.executable = 'python3.9'\n" + script
    done = subprocess.run([sys.executable, "-c", old], capture_output=True, text=True)
    assert (
        done.returncode == 2 and done.stderr == "error: PYTHON=python3.9 is Python 3.9: Millrace needs 3.11 or 3.12\n"
    )


@pytest.mark.parametrize(
    ("word", "says"),
    [
        (
            "recipe=configs/teaching/gpt-oz.yaml",
            "recipe=configs/teaching/gpt-oz.yaml: variables are written in capitals",
        ),
        ("steps=9", "steps=9: variables are written in capitals (RECIPE, ARGS, PROMPT, …), and recipe keys as "),
        ("PROMT=acegik", "PROMT=acegik: make takes RECIPE, ARGS, PROMPT"),
        ("ARG=train.steps=9", "ARG=train.steps=9: make takes RECIPE, ARGS, PROMPT, FROM, KEY and PYTHON"),
        ("train.steps=999", 'train.steps=999: write recipe keys as ARGS="train.steps=999"'),
        ("generate.prompt=two words", 'write recipe keys as ARGS="generate.prompt=two words"'),
    ],
)
def test_arguments_that_make_would_ignore_are_rejected(word: str, says: str) -> None:
    done = make("generate", word)
    assert done.returncode == 2 and says in done.stderr


def test_a_recipe_key_is_explained() -> None:
    done = make("explain", "KEY=train.keep", f"PYTHON={sys.executable}")
    assert done.returncode == 0 and "Number of newest checkpoints to keep." in done.stdout
    done = make("explain", "KEY=train.kep", f"PYTHON={sys.executable}", KEY="train.keep")
    assert done.returncode == 2 and "the nearest key is train.keep" in done.stderr
    listed = make("explain", f"PYTHON={sys.executable}", KEY="train.keep")
    assert "train.optimizer" in listed.stdout, "a variable of the shell is not the key"


@pytest.mark.parametrize("prompt", ["it's $5 and $HOME", 'say "no"; $(shell ls) `ls` \\n', "# two\nlines"])
def test_a_prompt_reaches_the_command_as_it_was_typed(prompt: str, tmp_path: Path) -> None:
    shown = tmp_path / "python"
    shown.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
    shown.chmod(0o755)
    done = make("generate", f"PYTHON={shown}", "RECIPE=my recipes/r.yaml", f"PROMPT={prompt}", "ARGS=run.seed=1")
    shell = make("generate", f"PYTHON={shown}", PROMPT="%n@%m")  # zsh's own
    assert "generate.prompt" not in shell.stdout
    arguments = done.stdout.split("\0")[1:-1]  # the first one is of the check of PYTHON
    assert arguments == [
        "-m", "training", "generate", "--recipe", "my recipes/r.yaml", "run.seed=1", f"generate.prompt={prompt}",
    ]  # fmt: skip
