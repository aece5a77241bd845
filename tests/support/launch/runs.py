"""Small training runs for tests of launchers, on shards that are made once."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from artefacts.metrics_log import read_records
from tests.support.paths import CHECKOUT
from tests.support.waiting import PATIENCE

RECIPE = CHECKOUT / "tests" / "end-to-end.yaml"


def make_data(root: Path, recipe: Path = RECIPE) -> Path:
    """Token shards and chat examples of the small recipe; returns the folder for ``data.root``."""
    for stage in ("run", "examples"):
        argv = [sys.executable, "-m", "pipeline", stage, "--recipe", str(recipe), f"run.root={root}"]
        done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return root / "end-to-end"


def launch(
    kind: str, *words: str, env: Mapping[str, str] | None = None, recipe: Path = RECIPE, verb: str = "pretrain"
) -> subprocess.Popen[str]:
    """``python -m launch KIND VERB`` with overrides or options; output is captured."""
    argv = [sys.executable, "-m", "launch", kind, verb, "--recipe", str(recipe), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(argv, cwd=CHECKOUT, env=env, text=True, **pipes)


def ended(process: subprocess.Popen[str], expect: int | Sequence[int] = 0) -> tuple[str, str]:
    """Wait for a launch to end with an expected status; returns its stdout and stderr."""
    out, err = process.communicate(timeout=PATIENCE)
    wanted = [expect] if isinstance(expect, int) else expect
    assert process.returncode in wanted, f"status {process.returncode}\n{out[-3000:]}\n{err[-5000:]}"
    return out, err


def shared_memory() -> set[str]:
    """DeepSpeed's shared memory files on this host."""
    return {path.name for path in Path("/dev/shm").glob("deepspeed*")}


def steps(root: Path, name: str = "end-to-end") -> list[int]:
    """Steps that a run has done, in order, with repetitions."""
    return [record["step"] for record in _records(root, name)]


def losses(root: Path, name: str = "end-to-end", folder: str = "pretrain") -> dict[int, float]:
    """The last loss of every step of pretraining, or of the stage in another ``folder`` of the run."""
    return {record["step"]: record["loss"] for record in _records(root, name, folder)}


def _records(root: Path, name: str, folder: str = "pretrain") -> list[dict]:
    file = root / name / folder / "metrics.jsonl"
    return [record for record in read_records(file) if record["kind"] == "train"] if file.exists() else []


@contextmanager
def another_seed(root: Path) -> Iterator[None]:
    """Give the only checkpoint of the run a different seed for a while, which only a worker notices."""
    (file,) = (root / "end-to-end" / "pretrain" / "checkpoints").glob("step-*/manifest.json")
    original = file.read_text()
    manifest = json.loads(original)
    manifest["identity"]["seed"] = 99
    file.write_text(json.dumps(manifest))
    try:
        yield
    finally:
        file.write_text(original)
