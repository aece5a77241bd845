"""A run that is killed repeatedly ends with bitwise the same weights as an undisturbed run."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from artefacts import manifest
from artefacts.metrics_log import read_records
from artefacts.training_folder import checkpoints
from configs.load import load_recipe
from configs.run_layout import RunLayout
from tests.support.launch.runs import shared_memory
from tests.support.paths import CHECKOUT
from tests.support.training.pairs import PAIRS, SFT, STAGE, with_answers, with_pairs
from tests.support.waiting import PATIENCE

RECIPE = CHECKOUT / "tests" / "end-to-end.yaml"
pytestmark = [pytest.mark.engine, pytest.mark.apart]


SAVING = ["train.precision=fp32", "train.save_every=4", "train.eval_every=0", "train.keep=3"]


@dataclass(frozen=True)
class Run:
    """What ``launch local`` starts with these words, and the folder in which it trains."""

    words: list[str]
    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def last_checkpoint(self) -> manifest.Manifest:
        return manifest.require_sound(checkpoints(self.folder)[-1], self.words[0])

    def used_checkpoint(self) -> str:
        """The name of the checkpoint that later steps use."""
        name: str = manifest.require(self.folder, self.words[0]).details["checkpoint"]
        return name

    def losses(self) -> dict[int, tuple[float, ...]]:
        """The loss and the rewards' margin, if there is one, of each training step."""
        records = [record for record in read_records(self.folder / "metrics.jsonl") if record["kind"] == "train"]
        keys = ("loss", "rewards/margin")
        return {record["step"]: tuple(record[key] for key in keys if key in record) for record in records}


def arguments(root: Path, steps: int) -> list[str]:
    return ["--recipe", str(RECIPE), f"run.root={root}", f"train.steps={steps}", *SAVING]


def pretraining(root: Path, steps: int) -> Run:
    layout = RunLayout.of(load_recipe(RECIPE, [f"run.root={root}"]))
    return Run(["pretrain", *arguments(root, steps)], layout.pretrain)


def preference_stage(root: Path, steps: int) -> Run:
    """A stage on the pairs of ``with_pairs``, on two expert-parallel ranks."""
    return finetuning(root, steps, "dpo", *STAGE)


def finetuning(root: Path, steps: int, name: str, *stage: str) -> Run:
    more = [f"run.root={root}", f"finetune.epochs={4 * steps / PAIRS}", "launch.processes=2", "launch.threads=1"]
    recipe = root / "recipe.yaml"
    layout = RunLayout.of(load_recipe(recipe, [*stage, *more]))
    return Run(["finetune", "--recipe", str(recipe), *stage, *SAVING, *more], layout.finetune(name))


@dataclass
class Tally:
    """Counts the kills."""

    victims: Counter[str] = field(default_factory=Counter)
    starting: int = 0
    saving: int = 0
    starts: int = 0

    @property
    def kills(self) -> int:
        return self.victims.total()


class Life:
    """One start of the run in a folder."""

    def __init__(self, run: Run, log: Path) -> None:
        self._run = run
        self._log = open(log, "ab")  # noqa: SIM115 - as long as the process
        argv = [sys.executable, "-m", "launch", "local", *run.words]
        self.process = subprocess.Popen(argv, cwd=CHECKOUT, stdout=self._log, stderr=self._log)

    def children(self) -> dict[int, str]:
        """torchrun's agent and its ranks, as far as they have started: process id -> ``agent`` or ``rank``."""
        processes = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                if "training" in (words := process.cmdline()):
                    processes[process.pid] = "agent" if "torch.distributed.run" in words else "rank"
        return processes

    def saving(self) -> bool:
        return any(self._run.checkpoints.glob(".step-*.partial"))

    def steps_done(self) -> int:
        file = self._run.folder / "metrics.jsonl"
        return sum(1 for _ in read_records(file)) if file.exists() else 0

    def kill(self, victim: int) -> None:
        """Kill a process, and wait until no process of this life is left."""
        processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
        assert not alive, f"still there {PATIENCE} s after a kill: {alive}"
        self.process.wait()
        self._log.close()


def until(life: Life, wanted, what: str) -> bool:
    """Wait for a condition. Returns False if the run ended before."""
    deadline = time.monotonic() + PATIENCE
    while not wanted():
        if life.process.poll() is not None:
            return False
        assert time.monotonic() < deadline, f"no {what} within {PATIENCE} s of a start"
        time.sleep(0.001)
    return True


def kill_once(life: Life, moment: str, generator: random.Random, tally: Tally) -> bool:
    """Kill a process of one start at some moment. Returns False if the processes exited before."""
    before = life.steps_done()
    if moment == "starting":
        time.sleep(generator.uniform(0.1, 8.0))
    elif not until(life, lambda: life.steps_done() >= before + generator.randint(2, 9), "step"):
        return False
    if moment == "saving" and not until(life, life.saving, "checkpoint begun"):
        return False
    targets = {life.process.pid: "launcher", **life.children()}
    victim = generator.choice(list(targets))
    if life.process.poll() is not None:
        return False
    life.kill(victim)
    tally.victims[targets[victim]] += 1
    tally.starting += moment == "starting"
    tally.saving += life.saving()  # what was being written still exists
    return True


def suffer(run: Run, kills: int, log: Path, tally: Tally) -> None:
    """Start, kill, start again, until ``kills`` kills are done; then let it finish."""
    generator = random.Random(5)
    while tally.kills < kills:
        life = Life(run, log)
        moment = generator.choice(["starting", "running", "saving", "saving", "saving"])
        if not kill_once(life, moment, generator, tally):
            assert life.process.wait() == 0, log.read_text()[-3000:]
            # It finished before all kills were done: continue with a run that resumes from an earlier checkpoint.
            for path in sorted(run.checkpoints.glob("step-*"))[1:]:
                shutil.rmtree(path)
            (run.folder / manifest.NAME).unlink()
        tally.starts += 1
    assert Life(run, log).process.wait(PATIENCE) == 0, log.read_text()[-3000:]


def check(tmp_path: Path, steps: int, kills: int) -> Tally:
    root = tmp_path / "alone"
    data = [sys.executable, "-m", "pipeline", "run", *arguments(root, steps)]
    subprocess.run(data, cwd=CHECKOUT, check=True, capture_output=True)
    return check_runs(tmp_path, pretraining, steps, kills)


def check_runs(tmp_path: Path, run_in: Callable[[Path, int], Run], steps: int, kills: int) -> Tally:
    """Kill a run in a copy of the folder ``alone``, and compare it with an undisturbed one."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    shutil.copytree(alone, killed)
    undisturbed, disturbed = run_in(alone, steps), run_in(killed, steps)
    whole = [sys.executable, "-m", "launch", "local", *undisturbed.words]
    subprocess.run(whole, cwd=CHECKOUT, check=True, capture_output=True)
    tally = Tally()
    shared = shared_memory()
    suffer(disturbed, kills, tmp_path / "log", tally)
    expected, saved = undisturbed.last_checkpoint(), disturbed.last_checkpoint()
    assert saved.counts["step"] == steps
    assert saved.files == expected.files, "the killed run's last checkpoint is not the other's, byte for byte"
    assert disturbed.used_checkpoint() == undisturbed.used_checkpoint()
    assert not (left := shared_memory() - shared), f"shared memory is left behind: {left}"
    return tally


def check_losses(tmp_path: Path, run_in: Callable[[Path, int], Run], steps: int) -> None:
    """Compare the losses of each step of the two runs of ``check_runs``."""
    alone, killed = (run_in(tmp_path / root, steps).losses() for root in ("alone", "killed"))
    assert alone == killed and len(alone) == steps


# Half a minute: four real starts, since the launcher, its agent or its ranks are killed.
def test_a_killed_run_ends_with_the_same_weights(tmp_path) -> None:
    tally = check(tmp_path, steps=24, kills=2)
    assert tally.kills == 2


@pytest.mark.slow
def test_a_killed_preference_stage_ends_with_the_same_weights_and_losses(tmp_path) -> None:
    """Kills before, while and after the reference log-probabilities are computed, and while a checkpoint is written."""
    with_pairs(tmp_path / "alone")
    tally = check_runs(tmp_path, preference_stage, steps=60, kills=8)
    assert tally.kills == 8
    check_losses(tmp_path, preference_stage, steps=60)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [(), ("finetune.lora.rank=4", "finetune.lora.alpha=8")], ids=["all", "lora"])
def test_a_killed_stage_with_packing_and_replay_ends_with_the_same_weights_and_losses(tmp_path, lora) -> None:
    def stage(root: Path, steps: int) -> Run:
        return finetuning(root, steps, "sft", *SFT, *lora)

    recipe, _ = with_answers(tmp_path / "alone")
    assert recipe.finetune[0].packs and recipe.finetune[0].replayed
    tally = check_runs(tmp_path, stage, steps=60, kills=6)
    assert tally.kills == 6
    check_losses(tmp_path, stage, steps=60)


@pytest.mark.slow
def test_fifty_kills(tmp_path, capsys) -> None:
    tally = check(tmp_path, steps=300, kills=50)
    with capsys.disabled():
        victims = ", ".join(f"{count} of the {name}" for name, count in tally.victims.items())
        print(
            f"\n{tally.kills} kills in {tally.starts} starts: {victims}; {tally.starting} at a start, {tally.saving} "
            "while a checkpoint was being written"
        )
    assert tally.kills == 50
    assert tally.saving >= 10
    assert min(tally.victims["launcher"], tally.victims["agent"], tally.victims["rank"]) > 0
