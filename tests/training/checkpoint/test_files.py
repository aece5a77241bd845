"""The file format, its index, and which checkpoints are kept."""

import hashlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from artefacts.manifest import DamagedError
from tests.support.training_runs import begun, saved
from training.checkpoint import load, tensor_file
from training.checkpoint.index import Contents, rank_file
from training.checkpoint.load import usable_checkpoint
from training.checkpoint.retention import Retention, superseded
from training.checkpoint.snapshot import BUFFER, MASTER, RANDOM


def test_the_library_reads_what_we_write(tmp_path) -> None:
    kinds = (torch.uint8, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.float64, torch.bool)
    tensors = {str(kind): (torch.rand(3, 5) * 100).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0), "part": torch.arange(9.0)[3:7]}
    tensors["empty, with strides of 0"] = torch.empty_strided((0,), (0,))
    path = tmp_path / "x.safetensors"
    entry = tensor_file.write(path, tensors, {"text": "ü"})
    content = path.read_bytes()
    assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"text": "ü"}
    assert tensor_file.read_metadata(path) == {"text": "ü"}


def test_a_write_without_a_folder_is_reported(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        tensor_file.write(tmp_path / "not" / "there", {}, {})


def write_cut(folder: Path, whole: dict[str, np.ndarray], cuts: list[tuple[str, int, int]], ranks: int) -> None:
    """Write parameters that are cut into slices and distributed over the files of ranks."""
    shares: list[list[tuple[str, int, int]]] = [[] for _ in range(ranks)]
    for number, cut in enumerate(cuts):
        shares[number % ranks].append(cut)
    for rank, share in enumerate(shares):
        flats = {MASTER: [], "exp_avg": []}
        slices, offset = [], 0
        for name, start, end in share:
            padding = np.full(offset % 3, np.nan, np.float32)
            offset += len(padding)
            elements = whole[name].reshape(-1)[start:end]
            for key, sign in ((MASTER, 1), ("exp_avg", -1)):
                flats[key] += [padding, sign * elements]
            slices.append((name, whole[name].shape, start, end - start, offset))
            offset += end - start
        tensors = {
            f"0.{key}": torch.tensor(np.concatenate([np.zeros(0, np.float32), *flat])) for key, flat in flats.items()
        }
        if rank == 0:
            tensors[BUFFER + "bias"] = torch.ones(2)
        tensors[RANDOM + "cpu"] = torch.full((4,), rank, dtype=torch.uint8)
        table = [{"states": list(flats), "scalars": {"step": 7.0}, "slices": slices}]
        tensor_file.write(folder / rank_file(rank), tensors, {"partitions": json.dumps(table)})


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_range_of_elements_is_read_from_any_slices(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("cut")
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shapes = {"a": (3, 4), "b": (7,), "c": (2, 3, 5)}
    whole = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    cuts = []
    for name, elements in whole.items():
        inner = data.draw(st.sets(st.integers(1, elements.size - 1), max_size=4))
        edges = [0, *sorted(inner), elements.size]
        cuts += [(name, low, high) for low, high in itertools.pairwise(edges)]
    cuts = data.draw(st.permutations(cuts))
    write_cut(folder, whole, cuts, data.draw(st.integers(1, 4)))
    contents = Contents(folder)
    for name, elements in whole.items():
        parameter = contents.parameters[name]
        assert (parameter.shape, parameter.scalars) == (elements.shape, {"step": 7.0})
        start = data.draw(st.integers(0, elements.size - 1))
        end = data.draw(st.integers(start + 1, elements.size))
        for key, sign in ((MASTER, 1), ("exp_avg", -1)):
            read = contents.read(name, key, start, end - start)
            np.testing.assert_array_equal(read.numpy(), sign * elements.reshape(-1)[start:end])
    assert contents.buffers()["bias"].tolist() == [1, 1]
    assert contents.random_states(0)["cpu"].tolist() == [0] * 4


def test_a_parameter_with_a_hole_is_named(tmp_path) -> None:
    write_cut(tmp_path, {"a": np.zeros((4, 4), np.float32)}, [("a", 0, 5), ("a", 6, 16)], 2)
    with pytest.raises(DamagedError, match="a is incomplete"):
        Contents(tmp_path)


def test_the_newest_every_nth_and_the_best_are_kept() -> None:
    losses = {100: 3.0, 200: 2.0, 300: None, 400: 1.0, 500: 1.5, 600: 1.2, 700: None}
    assert superseded(losses, Retention(newest=2)) == [100, 200, 300, 400, 500]
    assert superseded(losses, Retention(newest=1, every=300)) == [100, 200, 400, 500]
    assert superseded(losses, Retention(newest=2, best=1)) == [100, 200, 300, 500]
    assert superseded(losses, Retention(newest=1, every=500, best=2)) == [100, 200, 300]
    assert superseded({}, Retention(newest=1)) == []
    assert superseded({1: math.nan, 2: 2.0, 3: 3.0, 4: math.nan}, Retention(newest=1, best=1)) == [1, 3]


@given(
    losses=st.dictionaries(st.integers(1, 50), st.none() | st.floats(0, 9)),
    newest=st.integers(1, 5),
    every=st.integers(0, 9),
    best=st.integers(0, 3),
)
def test_the_newest_are_never_deleted(losses, newest, every, best) -> None:
    gone = superseded(losses, Retention(newest, every, best))
    stay = sorted(set(losses) - set(gone))
    assert stay[-newest:] == sorted(losses)[-newest:]
    # Publishing again deletes nothing more.
    assert superseded({step: losses[step] for step in stay}, Retention(newest, every, best)) == []


def test_commands_use_the_checkpoint_that_a_run_ended_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it trains, or if that checkpoint is damaged, they use the newest complete one."""
    monkeypatch.setattr(load, "fault_of_format", lambda saved: "")
    run = begun(tmp_path)
    assert usable_checkpoint(run.folder) is None
    best = saved(run, 1, {"validation_loss": 1.0}, keep_best=True)
    newer = saved(run, 3, {"validation_loss": 2.0}, keep_best=True)
    usable = usable_checkpoint(run.folder)
    assert usable is not None and (usable.folder, usable.skipped) == (newer, [])
    last = saved(run, 4, {"validation_loss": 1.5}, keep_best=True)
    run.finish(last)
    usable = usable_checkpoint(run.folder)
    assert usable is not None and (usable.folder, usable.step) == (best, 1)
    next(best.glob("*.safetensors")).write_text("other")
    usable = usable_checkpoint(run.folder)
    assert usable is not None and usable.folder == last
    (line,) = usable.skipped
    assert line.startswith("step-00000001 skipped: ")
