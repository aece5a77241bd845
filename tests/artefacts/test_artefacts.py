"""An artefact with a manifest is complete, published artefacts are never overwritten, and only one process writes."""

import fcntl
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from artefacts import atomic, lock, manifest
from artefacts import stage as stage_module
from artefacts.errors import RequestError
from artefacts.metrics_log import read_metrics, read_records
from artefacts.stage import open_stage
from configs.run_layout import RunLayout
from tests.support.paths import CHECKOUT


def build(target: Path, content: str, inputs: dict[str, str] | None = None) -> manifest.Manifest | None:
    with open_stage("thing", target, {"content": content}, inputs or {}) as stage:
        if stage.finished:
            return None
        atomic.write_text(stage.work / "a.txt", content)
        return stage.publish(counts={"characters": len(content)}, versions={}, details={})


def test_a_finished_stage_is_not_repeated(tmp_path: Path) -> None:
    published = build(tmp_path / "thing", "one")
    assert published is not None
    assert published.counts == {"characters": 3}
    assert build(tmp_path / "thing", "one") is None
    assert manifest.read(tmp_path / "thing") == published
    assert not list(tmp_path.glob(".thing.partial"))


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        build(tmp_path / folder / "thing", "one")
    first, second = ((tmp_path / folder / "thing" / manifest.NAME).read_bytes() for folder in ("x", "y"))
    assert first == second


@pytest.mark.parametrize(("content", "inputs"), [("two", {}), ("one", {"source": "abc"})])
def test_another_identity_moves_the_old_one_aside(tmp_path: Path, content: str, inputs: dict[str, str]) -> None:
    build(tmp_path / "thing", "one")
    assert build(tmp_path / "thing", content, inputs) is not None
    (aside,) = (tmp_path / "previous").iterdir()
    assert (aside / "a.txt").read_text() == "one"
    assert (tmp_path / "thing" / "a.txt").read_text() == content


def test_an_interrupted_stage_resumes_and_removes_incomplete_files(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    with pytest.raises(KilledError), open_stage("thing", tmp_path / "thing", {}, {}) as stage:
        atomic.write_text(stage.work / "first.txt", "kept")
        (stage.work / ".second.txt.123.partial").write_text("torn")
        raise KilledError
    assert manifest.read(tmp_path / "thing") is None
    with open_stage("thing", tmp_path / "thing", {}, {}) as stage:
        assert (stage.work / "first.txt").read_text() == "kept"
        published = stage.publish(counts={}, versions={})
    assert list(published.files) == ["first.txt"]


@pytest.mark.parametrize("moment", ["describe_files", "sync_tree", "rmtree"])
def test_a_kill_while_publishing_causes_no_second_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    class KilledError(Exception):
        pass

    def killed(*arguments: object) -> None:
        raise KilledError

    owner = {"describe_files": manifest, "sync_tree": atomic, "rmtree": stage_module.shutil}[moment]
    with monkeypatch.context() as patch, open_stage("thing", tmp_path / "thing", {}, {}) as stage:
        atomic.write_text(stage.work / "a.txt", "kept")
        atomic.write_text(stage.scratch / "part", "kept")
        patch.setattr(owner, moment, killed)
        with pytest.raises(KilledError):
            stage.publish(counts={}, versions={})
    with open_stage("thing", tmp_path / "thing", {}, {}) as stage:
        assert stage.finished == (moment == "rmtree")
        if not stage.finished:
            assert (stage.work / "a.txt").exists() and (stage.scratch / "part").exists()
            stage.publish(counts={}, versions={})
    published = manifest.read(tmp_path / "thing")
    assert published is not None and list(published.files) == ["a.txt"]
    assert sorted(path.name for path in (tmp_path / "thing").iterdir()) == ["a.txt", manifest.NAME]
    assert not (tmp_path / ".thing.partial").exists()


def test_opening_a_finished_artefact_keeps_an_unfinished_build(tmp_path: Path) -> None:
    build(tmp_path / "thing", "one")
    with open_stage("thing", tmp_path / "thing", {"content": "two"}, {}) as stage:
        atomic.write_text(stage.scratch / "part", "kept")
    assert build(tmp_path / "thing", "one") is None
    with open_stage("thing", tmp_path / "thing", {"content": "two"}, {}) as stage:
        assert (stage.scratch / "part").exists()


def test_an_interrupted_stage_of_another_identity_starts_over(tmp_path: Path) -> None:
    with open_stage("thing", tmp_path / "thing", {"n": 1}, {}) as stage:
        atomic.write_text(stage.work / "first.txt", "old")
    with open_stage("thing", tmp_path / "thing", {"n": 2}, {}) as stage:
        assert not (stage.work / "first.txt").exists()


def test_a_rejected_stage_leaves_no_new_files(tmp_path: Path) -> None:
    def refused(target: Path, begun: bool = False) -> list[str]:
        with pytest.raises(RequestError, match="no"), open_stage("thing", target, {"n": 1}, {}) as stage:
            if begun:
                atomic.write_text(stage.scratch / "part", "kept")
            raise RequestError("no")
        return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())

    assert refused(tmp_path / "new" / "run" / "thing") == [] and not (tmp_path / "new").exists()
    build(tmp_path / "run" / "thing", "one")
    before = sorted(tmp_path.rglob("*"))
    assert refused(tmp_path / "run" / "other") == refused(tmp_path / "run" / "thing")
    assert sorted(tmp_path.rglob("*")) == before
    assert "new/.thing.partial/scratch/part" in refused(tmp_path / "new" / "thing", begun=True)
    assert "new/.thing.partial/scratch/part" in refused(tmp_path / "new" / "thing")


def test_a_lock_removed_by_a_rejected_command_blocks_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "thing"
    with ExitStack() as stack:
        with pytest.raises(RequestError, match="no"), lock.hold(folder):
            late = stack.enter_context(lock._opened(folder))
            raise RequestError("no")
        assert not folder.parent.exists()
        with lock.hold(folder):
            assert not lock._taken(late, fcntl.LOCK_EX, folder)
            with pytest.raises(RequestError, match="is being written"), lock.hold(folder):
                pass
    lock.refuse_if_held(tmp_path / "nowhere" / "thing")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    build(tmp_path / "thing", "some content")
    path = tmp_path / "thing" / "a.txt"
    assert manifest.faults(tmp_path / "thing") == []
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    {"flip": lambda: path.write_bytes(content), "cut": lambda: path.write_bytes(content[:4]), "remove": path.unlink}[
        damage
    ]()
    (fault,) = manifest.faults(tmp_path / "thing")
    assert "a.txt" in fault


_WRONG = [{"files": []}, {"files": {"a": 1}}, {"files": {"a": {"bytes": "1", "sha256": ""}}}, {"inputs": None}]


@pytest.mark.parametrize("content", ['{"format": 1', "[1]", "null", "[" * 100_000, *map(json.dumps, _WRONG)])
def test_a_damaged_manifest_gives_a_one_line_error(tmp_path: Path, content: str) -> None:
    build(tmp_path / "thing", "one")
    path = tmp_path / "thing" / manifest.NAME
    wrong = json.loads(content) if content in map(json.dumps, _WRONG) else None
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}) if wrong else content)
    with pytest.raises(RequestError, match="damaged manifest"):
        manifest.read(tmp_path / "thing")


def test_a_path_that_cannot_be_a_folder_gives_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "thing").write_text("a file")
    with pytest.raises(RequestError, match="is a file, not a folder"):
        manifest.require(tmp_path / "thing", "make thing")
    (tmp_path / "other" / manifest.NAME).mkdir(parents=True)
    with pytest.raises(RequestError, match="cannot be read: Is a directory"):
        manifest.read(tmp_path / "other")


def test_a_second_writer_is_rejected_unless_the_first_is_dead(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from artefacts import lock\n"
        f"with lock.hold(Path({str(tmp_path / 'thing')!r})):\n"
        "    print('held', flush=True); time.sleep(3600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RequestError, match=f"process {holder.pid}"), lock.hold(tmp_path / "thing"):
        pass
    holder.kill()
    holder.wait()
    with lock.hold(tmp_path / "thing"):
        pass


def test_metrics_survive_repeated_and_incomplete_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"kind": "train", "step": 1, "loss": 3.0}\n{"kind": "train", "step": 2, "loss": 2.5}\n{"kind": "tra'
        '{"kind": "train", "step": 2, "loss": 2.0}\n{"kind": "validation", "step": 2, "loss": 4.0}\n'
    )
    assert [record["loss"] for record in read_records(path)] == [3.0, 2.5, 2.0, 4.0]
    assert [record["loss"] for record in read_metrics(path)["train"]] == [3.0, 2.0]
    assert read_metrics(tmp_path / "none") == {}


def test_unfinished_work_of_another_recipe_is_moved_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_stage("thing", tmp_path / "thing", {"n": 1}, {}) as stage:
        atomic.write_text(stage.scratch / "hours.txt", "of work")
    with open_stage("thing", tmp_path / "thing", {"n": 2}, {}) as stage:
        assert not list(stage.scratch.iterdir())
    (aside,) = (tmp_path / "previous").iterdir()
    assert (aside / "scratch" / "hours.txt").read_text() == "of work"
    assert f"moved aside to {aside}" in capsys.readouterr().out
    with open_stage("thing", tmp_path / "thing", {"n": 3}, {}):
        assert len(list((tmp_path / "previous").iterdir())) == 1, "nothing was begun"


def test_tasks_share_a_folder_that_the_first_prepares(tmp_path: Path) -> None:
    prepared: list[int] = []
    with lock.share(tmp_path / "thing", lambda: prepared.append(1)):
        with lock.share(tmp_path / "thing", lambda: prepared.append(2)):
            pass
        with (
            pytest.raises(RequestError, match="is being written by tasks of another command"),
            lock.hold(tmp_path / "thing"),
        ):
            pass
    assert prepared == [1]
    with (
        lock.hold(tmp_path / "thing"),
        pytest.raises(RequestError, match=r"is being written by process \d+"),
        lock.share(tmp_path / "thing", lambda: None),
    ):
        pass


def test_tasks_of_another_recipe_are_refused(tmp_path: Path) -> None:
    with (
        open_stage("thing", tmp_path / "thing", {"n": 1}, {}, shared=True),
        pytest.raises(RequestError, match="tasks of another recipe or source are running"),
        open_stage("thing", tmp_path / "thing", {"n": 2}, {}, shared=True),
    ):
        pass


def test_an_up_to_date_artefact_needs_no_lock(tmp_path: Path) -> None:
    build(tmp_path / "thing", "one")
    with lock.hold(tmp_path / "thing"):
        assert build(tmp_path / "thing", "one") is None
        with pytest.raises(RequestError, match="is being written by process"):
            build(tmp_path / "thing", "two")


def test_a_briefly_held_lock_is_waited_for(tmp_path: Path) -> None:
    held = lock.hold(tmp_path / "thing")
    held.__enter__()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "_PATIENCE", float("inf"))
        patch.setattr("time.sleep", lambda seconds: held.__exit__(None, None, None))
        with lock.hold(tmp_path / "thing"):
            pass


def test_an_unwritable_folder_gives_a_one_line_error() -> None:
    # Even root cannot write to folders of the kernel.
    message = r"^/sys/kernel cannot be written \(.*\): set run\.root to a folder of yours"
    with pytest.raises(RequestError, match=message), lock.hold(Path("/sys/kernel/thing")):
        pass


@pytest.mark.parametrize("place", ["empty", "matching"])
def test_a_stage_follows_a_symlinked_folder(tmp_path: Path, place: str) -> None:
    disk, data = tmp_path / "disk", tmp_path / "run"
    (disk / "tokens").mkdir(parents=True)
    data.mkdir()
    (data / "tokens").symlink_to(disk / "tokens")
    layout = RunLayout(data, data)
    if place == "matching":
        build(disk / "tokens", "one")
        assert build(layout.tokens, "one") is None
    for content in ("one", "two"):
        build(layout.tokens, content)
        assert (data / "tokens").is_symlink() and (disk / "tokens" / "a.txt").read_text() == content
    (aside,) = (disk / "previous").iterdir()
    assert (aside / "a.txt").read_text() == "one", "an empty folder is filled, and not moved aside"
    assert not (data / "previous").exists()


def test_a_broken_link_in_place_of_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "unmounted")
    with pytest.raises(RequestError, match=r"run is a file or a dangling link"):
        build(tmp_path / "run" / "thing", "one")
