"""The manifest contract: what has a manifest is whole, nothing published is overwritten, one writer at a time."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from artefacts import lock, manifest, publish
from artefacts.metrics import read_metrics, read_records
from artefacts.stage import open_stage
from artefacts.training_run import TrainingRun
from configs.errors import RequestError

CHECKOUT = Path(__file__).parents[2]


def build(target: Path, content: str, inputs: dict[str, str] | None = None) -> manifest.Manifest | None:
    with open_stage("thing", target, {"content": content}, inputs or {}) as stage:
        if stage.finished:
            return None
        publish.write_text(stage.work / "a.txt", content)
        return stage.publish(counts={"characters": len(content)}, versions={}, details={})


def test_a_finished_stage_is_not_repeated(tmp_path: Path) -> None:
    made = build(tmp_path / "thing", "one")
    assert made is not None
    assert made.counts == {"characters": 3}
    assert build(tmp_path / "thing", "one") is None
    assert manifest.read(tmp_path / "thing") == made
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


def test_an_interrupted_stage_goes_on_and_its_torn_files_are_swept(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    with pytest.raises(KilledError), open_stage("thing", tmp_path / "thing", {}, {}) as stage:
        publish.write_text(stage.work / "first.txt", "kept")
        (stage.work / ".second.txt.123.partial").write_text("torn")
        raise KilledError
    assert manifest.read(tmp_path / "thing") is None
    with open_stage("thing", tmp_path / "thing", {}, {}) as stage:
        assert (stage.work / "first.txt").read_text() == "kept"
        made = stage.publish(counts={}, versions={})
    assert list(made.files) == ["first.txt"]


def test_an_interrupted_stage_of_another_identity_starts_afresh(tmp_path: Path) -> None:
    with open_stage("thing", tmp_path / "thing", {"n": 1}, {}) as stage:
        publish.write_text(stage.work / "first.txt", "old")
    with open_stage("thing", tmp_path / "thing", {"n": 2}, {}) as stage:
        assert not (stage.work / "first.txt").exists()


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


def test_a_damaged_manifest_is_refused_in_one_line(tmp_path: Path) -> None:
    build(tmp_path / "thing", "one")
    (tmp_path / "thing" / manifest.NAME).write_text('{"format": 1')
    with pytest.raises(RequestError, match="damaged manifest"):
        manifest.read(tmp_path / "thing")


def test_a_second_writer_is_refused_and_a_dead_one_does_not_count(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from artefacts import lock\n"
        f"with lock.hold(Path({str(tmp_path / 'thing')!r})):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RequestError, match=f"process {holder.pid}"), lock.hold(tmp_path / "thing"):
        pass
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with lock.hold(tmp_path / "thing"):
        assert time.monotonic() - began < 5


def test_a_training_folder_resumes_or_moves_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = TrainingRun("pretrain", tmp_path / "pretrain", {"lr": 1}, {"tokens": "t"})
    run.open("recipe")
    (run.folder / "metrics.jsonl").write_text("kept")
    run.open("recipe")
    assert (run.folder / "metrics.jsonl").read_text() == "kept"
    run.finish({}, {}, {})
    assert run.manifest() is not None
    other = TrainingRun("pretrain", tmp_path / "pretrain", {"lr": 2}, {"tokens": "t"})
    assert other.manifest() is None
    other.open("recipe")
    assert "moved aside" in capsys.readouterr().out
    (aside,) = (tmp_path / "previous").iterdir()
    assert (aside / "metrics.jsonl").read_text() == "kept"


def test_metrics_survive_repeats_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"kind": "train", "step": 1, "loss": 3.0}\n{"kind": "train", "step": 2, "loss": 2.5}\n{"kind": "tra'
        '{"kind": "train", "step": 2, "loss": 2.0}\n{"kind": "validation", "step": 2, "loss": 4.0}\n'
    )
    assert [record["loss"] for record in read_records(path)] == [3.0, 2.5, 2.0, 4.0]
    assert [record["loss"] for record in read_metrics(path)["train"]] == [3.0, 2.0]
    assert read_metrics(tmp_path / "none") == {}
