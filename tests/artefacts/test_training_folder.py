"""A training folder resumes its run, refuses another run, and restores its small files."""

import json
from pathlib import Path

import pytest

from artefacts import manifest
from artefacts.errors import RequestError
from artefacts.training_folder import (
    IDENTITY,
    LATER_IN_CHAIN,
    TrainingRun,
    checkpoints,
    finished,
    has_weights,
    read_identity,
    saved_steps,
)
from configs.run_layout import RunLayout
from tests.support.training_runs import begun, saved

#: What a crash of the machine can make of a small file.
DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "of another kind": lambda content: b"[]",
    "missing": None,
}


def damage(path: Path, how: str) -> None:
    change = DAMAGE[how]
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))


def test_a_run_resumes_and_another_without_weights_is_moved_aside(tmp_path, capsys) -> None:
    run = begun(tmp_path)
    (run.folder / "metrics.jsonl").write_text("kept")
    run.open("recipe", replace=False)
    assert (run.folder / "metrics.jsonl").read_text() == "kept"
    begun(tmp_path, rate=2)
    assert "another run (train.rate null -> 2), moved aside to" in capsys.readouterr().out
    (aside,) = (tmp_path / "previous").iterdir()
    assert (aside / "metrics.jsonl").read_text() == "kept"


def test_weights_are_not_moved_aside_by_default(tmp_path, capsys) -> None:
    saved(begun(tmp_path, rate=1), 2)
    other = begun(tmp_path / "elsewhere", rate=2, max_grad_norm=3)
    object.__setattr__(other, "folder", tmp_path / "pretrain")
    with pytest.raises(RequestError) as refused:
        other.open("recipe", replace=False)
    assert "holds another run (train.max_grad_norm null -> 3, train.rate 1 -> 2)" in str(refused.value)
    assert "run.name=" in str(refused.value) and "run.replace=true" in str(refused.value)
    other.open("recipe", replace=True)
    assert "moved aside" in capsys.readouterr().out and other.begun()


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", LATER_IN_CHAIN])
def test_a_requeued_job_replaces_nothing(tmp_path, monkeypatch, name) -> None:
    saved(begun(tmp_path, rate=1), 2)
    other = begun(tmp_path / "elsewhere", rate=2)
    object.__setattr__(other, "folder", tmp_path / "pretrain")
    monkeypatch.setenv(name, "2")
    with pytest.raises(RequestError, match="only resumes"):
        other.open("recipe", replace=True)
    monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")  # of a job array of the user, such as a sweep
    other.open("recipe", replace=True)


def test_a_requeued_job_replaces_a_stage_of_weights_that_it_trained_again(tmp_path, monkeypatch) -> None:
    old = begun(tmp_path, "finetune", {"weights": "first"})
    saved(old, 2)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    changed = TrainingRun("finetune", old.folder, {"train": {"steps": 5}}, {"weights": "first"}, "sft")
    with pytest.raises(RequestError, match="only resumes"):
        changed.open("recipe", replace=True)
    after = TrainingRun("finetune", old.folder, old.identity, {"weights": "second"}, "sft")
    with pytest.raises(RequestError, match=r"run\.replace=finetune"):
        after.open("recipe", replace=False)
    after.open("recipe", replace=True)
    assert after.begun() and not has_weights(after.folder)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_lost_manifest_is_written_again_from_the_last_checkpoint(tmp_path, how) -> None:
    run = begun(tmp_path)
    saved(run, 2)
    assert run.manifest() is None
    published = run.finish(saved(run, 4, imported={"model.safetensors": "f"}))
    assert published.details["imported"] and published.details["checkpoint"] == "step-00000004"
    if how == "missing":
        return  # a run that was stopped before its end
    damage(run.folder / manifest.NAME, how)
    assert run.manifest() == published == finished(run.folder)
    (line,) = run.restore()
    assert "restored from checkpoints/step-00000004" in line
    assert manifest.read(run.folder) == published and run.restore() == []


def with_losses(root: Path, *losses: float | None, **details: bool) -> list[Path]:
    """Checkpoints at steps 1, 2, ..., with these validation losses."""
    run = begun(root)
    counts = [{"validation_loss": loss} for loss in losses]
    return [saved(run, step, counts[step - 1], **details) for step in range(1, len(losses) + 1)]


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_ends_with_its_best_checkpoint_also_if_its_manifest_is_lost(tmp_path, how, stopped) -> None:
    """Also if it stopped early. Of two equal losses, the earlier one counts."""
    with_losses(tmp_path, 2.5, 2.0, keep_best=True)
    run = begun(tmp_path)
    assert finished(run.folder) is None and run.restore() == []
    counts = {"validation_loss": 2.0, **({"stopped_early": True} if stopped else {})}
    last = saved(run, 3 if stopped else 4, counts, keep_best=True)
    published = run.finish(last)
    assert published.details["checkpoint"] == "step-00000002"
    weights = manifest.require(run.folder / "checkpoints" / "step-00000002", "pretrain").fingerprint
    assert published.details["weights"] == weights and published.counts["steps"] == (3 if stopped else 4)
    assert "keep_best" not in published.details and published.details.get("stopped_early", False) is stopped
    damage(run.folder / manifest.NAME, how)
    if how != "missing":
        assert run.manifest() == published == finished(run.folder)
    (line,) = run.restore()
    assert "restored from checkpoints/step-00000002" in line
    assert manifest.read(run.folder) == published and run.restore() == []


def test_a_damaged_best_checkpoint_gives_way_to_the_next_best(tmp_path) -> None:
    first, second, third, last = with_losses(tmp_path, 2.5, 2.0, 2.2, None, keep_best=True)
    run = begun(tmp_path)
    run.finish(last)
    assert run.manifest().details["checkpoint"] == second.name
    next(second.glob("*.safetensors")).unlink()
    assert run.manifest() is None, "the run has to be finished again"
    assert run.finish(last).details["checkpoint"] == third.name
    for folder in (first, third):
        (folder / manifest.NAME).write_text("{")
    assert run.finish(last).details["checkpoint"] == last.name


def test_a_run_that_does_not_keep_its_best_ends_with_its_last_checkpoint(tmp_path) -> None:
    *_, last = with_losses(tmp_path, 2.5, 2.0, 2.2, 3.0)
    assert begun(tmp_path).finish(last).details["checkpoint"] == last.name


def test_a_manifest_of_another_version_loses_no_checkpoint(tmp_path) -> None:
    run = begun(tmp_path)
    run.finish(saved(run, 4))
    path = run.folder / manifest.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    for read in (run.manifest, run.restore):
        with pytest.raises(RequestError, match=r"format 99, .*it is restored from the checkpoints"):
            read()
    path.unlink()
    assert run.begun() and run.manifest() is None
    assert run.restore() == [f"{path} was missing: restored from checkpoints/step-00000004"]
    assert run.manifest() is not None


def test_a_damaged_manifest_of_an_unfinished_run_is_removed(tmp_path) -> None:
    run = begun(tmp_path)
    saved(run, 2)
    (run.folder / manifest.NAME).touch()
    assert finished(run.folder) is None
    assert "removed, because the training is not finished" in run.restore()[0]
    assert not (run.folder / manifest.NAME).exists() and run.begun()


def test_a_damaged_manifest_without_a_checkpoint_says_so(tmp_path) -> None:
    run = begun(tmp_path)
    (run.folder / manifest.NAME).touch()
    with pytest.raises(RequestError, match="this training has no checkpoint left"):
        run.manifest()


@pytest.mark.parametrize("how", DAMAGE)
def test_a_lost_identity_is_written_again_from_a_checkpoint(tmp_path, how) -> None:
    run = begun(tmp_path)
    saved(run, 2)
    newest = saved(run, 3)
    (newest / manifest.NAME).write_text("{")  # skipped
    before = (run.folder / IDENTITY).read_bytes()
    damage(run.folder / IDENTITY, how)
    assert run.begun() and read_identity(run.folder) == json.loads(before)
    (line,) = run.restore()
    assert "identity.json was missing or damaged: restored" in line
    assert (run.folder / IDENTITY).read_bytes() == before


def test_weights_without_an_identity_are_kept(tmp_path) -> None:
    run = begun(tmp_path)
    (saved(run, 2) / manifest.NAME).unlink()
    (run.folder / IDENTITY).unlink()
    with pytest.raises(RequestError, match="the checkpoints' manifests cannot be read"):
        run.open("recipe", replace=False)


def test_only_folders_named_after_a_step_are_checkpoints(tmp_path) -> None:
    run = begun(tmp_path)
    newest, oldest = saved(run, 20), saved(run, 3)
    for name in ("step-", "step-²", "step-٣", "step-last", ".step-00000004.partial", "other"):
        (run.folder / "checkpoints" / name).mkdir()
    (run.folder / "checkpoints" / "step-00000007").touch()
    assert saved_steps(run.folder / "checkpoints") == [3, 20] and checkpoints(run.folder) == [oldest, newest]
    assert saved_steps(tmp_path / "none") == [] and not has_weights(tmp_path)


def test_a_run_follows_a_symlinked_folder(tmp_path) -> None:
    disk, run = tmp_path / "disk" / "pretrain", tmp_path / "run"
    disk.mkdir(parents=True)
    run.mkdir()
    (run / "pretrain").symlink_to(disk)
    layout = RunLayout(run, run)
    for rate in (1, 2):
        begun(layout.pretrain.parent, rate=rate)
        assert (run / "pretrain").is_symlink() and (disk / IDENTITY).is_file()
    assert (disk.parent / "previous").is_dir() and not (run / "previous").exists()
