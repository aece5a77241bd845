"""Which device is chosen, and how the estimate and preflight treat a Mac, which is simulated here."""

import os
import sys

import pytest
import torch

from artefacts.errors import RequestError
from configs.load import load_recipe
from launch import preflight
from launch.plan import worker_environment
from training.distributed import join
from training.distributed.device import choose_device
from training.distributed.ranks import widest
from training.estimate import device, memory
from training.estimate.device import device_of
from training.model_loading import best_device

RECIPE = "configs/deepseek-demo.yaml"


@pytest.fixture(autouse=True)
def without_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")  # so that changes are undone afterwards
    monkeypatch.delenv("DS_ACCELERATOR")


def show_devices(monkeypatch: pytest.MonkeyPatch, cuda: bool = False, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("wanted", "accelerator", "cuda", "mps", "processes", "chosen"),
    [
        ("auto", None, True, True, 1, "cuda"),
        ("auto", None, False, True, 1, "mps"),
        ("auto", None, False, True, 2, "cpu"),
        ("auto", None, False, False, 1, "cpu"),
        ("auto", "cpu", True, True, 1, "cpu"),
        ("auto", "mps", True, True, 1, "mps"),
        ("cpu", "cuda", True, True, 1, "cpu"),
        ("mps", "cpu", True, True, 1, "mps"),
        ("cuda", None, True, True, 4, "cuda"),
    ],
)
def test_the_choice_of_a_device(
    wanted: str,
    accelerator: str | None,
    cuda: bool,
    mps: bool,
    processes: int,
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    show_devices(monkeypatch, cuda, mps)
    if accelerator:
        monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    assert choose_device(wanted, processes) == torch.device(chosen)
    assert os.environ["DS_ACCELERATOR"] == chosen


@pytest.mark.parametrize(("wanted", "missing"), [("mps", "sees no MPS"), ("cuda", "sees no GPU")])
def test_unavailable_devices_are_rejected(wanted: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    show_devices(monkeypatch)
    recipe = load_recipe(RECIPE, [f"launch.device={wanted}", "launch.processes=1"])
    with pytest.raises(
        RequestError, match=f"launch.device={wanted}, but torch {missing}.*set launch.device=auto or cpu"
    ):
        best_device(recipe)
    assert worker_environment(recipe)["DS_ACCELERATOR"] == wanted
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(RequestError, match=missing):
        join._device(wanted, 0)


@pytest.mark.parametrize("more", [["launch.processes=2"], ["launch.processes=1", "launch.kind=slurm"]])
def test_mps_allows_one_process_on_one_machine(more: list[str]) -> None:
    with pytest.raises(RequestError, match=r"launch\.device=mps is one process on this machine"):
        load_recipe(RECIPE, ["launch.device=mps", *more])


def test_a_mac_has_unified_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of a GPU and its host together; ``auto`` is MPS on a Mac, and MPS is refused elsewhere."""
    recipe = load_recipe(RECIPE, ["launch.device=auto", "launch.processes=1"])
    monkeypatch.setattr(device, "_gpu_bytes", lambda: None)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert device_of(recipe).kind == "cpu"
    on_mps = load_recipe(RECIPE, ["launch.device=mps", "launch.processes=1"])
    with pytest.raises(RequestError, match="not a Mac with Apple silicon"):
        preflight.check_gpus(on_mps)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(device.platform, "machine", lambda: "arm64")
    for checked in (recipe, on_mps):
        preflight.check_gpus(checked)
        assert (device_of(checked).kind, device_of(checked).bytes) == ("mps", total)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert device_of(recipe).kind == "cpu"
    gpu, mac = memory(recipe, "cuda"), memory(recipe, "mps")
    assert gpu.host > 0 and mac.host == 0 and mac.peak == gpu.peak + gpu.host
    assert sum(mac.parts.values()) == pytest.approx(sum(gpu.parts.values()) + gpu.host)
    small = load_recipe(RECIPE, ["launch.device=mps", "launch.processes=1", "launch.device_memory=100M"])
    (warning,) = preflight.check_memory(small)
    assert "launch.device_memory" in warning


def test_mps_has_no_fp64() -> None:
    assert widest(torch.device("mps")) == torch.float32 and widest(torch.device("cpu")) == torch.float64
