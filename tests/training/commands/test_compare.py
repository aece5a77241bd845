"""Short training runs equal a plain loop, activation functions equal their formulas, and comparisons report results."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from artefacts.errors import RequestError
from configs.schema import Recipe
from configs.schema.train import OptimizerSection
from tests.support.training.tiny_run import GPT, tiny_recipe
from training.__main__ import main
from training.compare import activations, attention, compiling, devices, optimizers
from training.compare.trial import Setting, trial
from training.data.pretraining import PretrainingData
from training.data.windows import TokenWindows
from training.layers.masks import Mask
from training.models.registry import build_model, init_weights

CPU = torch.device("cpu")
MODULES = (activations, compiling, devices, optimizers)


def data_of(recipe: Recipe) -> PretrainingData:
    windows = TokenWindows(Path(recipe.run.root) / "tiny" / "tokens", "train", recipe.train.context_length)
    return PretrainingData({"text": windows}, recipe.train.global_batch, recipe.run.seed)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in MODULES:
        monkeypatch.setattr(module, "run_data", data_of)
    tiny_recipe(tmp_path, GPT)
    return tmp_path


def results(root: Path, what: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "tiny" / "compare" / f"{what}.json").read_text())
    picture = (root / "tiny" / "compare" / f"{what}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    return content


@pytest.mark.parametrize("overrides", [[], ["train.micro_batch=1", "train.max_grad_norm=0"]])
def test_a_trial_is_a_plain_training(root: Path, overrides: list[str]) -> None:
    recipe = tiny_recipe(root, GPT, *overrides)
    data = data_of(recipe)
    result = trial(recipe, data, Setting(4, CPU, OptimizerSection(weight_decay=0.0), 0.02), "test")
    model = build_model(recipe.model, recipe.vocab_size)
    init_weights(model, recipe.run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    for step, loss in enumerate(result.losses):
        (batch,) = data.micro_batches(step, 0, 1, recipe.train.global_batch)
        expected = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.labels.flatten())
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        expected.backward()
        if recipe.train.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.train.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = 0.002 + 0.018 * 0.5 * (1 + math.cos(math.pi * step / 4))
        optimizer.step()
        optimizer.zero_grad()
    assert result.final == result.losses[-1] and len(result.seconds) == 4


def test_optimizers_start_from_the_same_loss_and_learn(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "optimizers", "--recipe", str(root / "recipe.yaml"), "--steps", "10"]
    assert main([*words, "train.learning_rate=3e-3"]) == 0
    saved = results(root, "optimizers")
    assert list(saved) == ["adam", "adamw", "muon", "sgd"]
    assert len({entry["losses"][0] for entry in saved.values()}) == 1
    assert len({entry["losses"][-1] for entry in saved.values()}) == 4
    assert all(entry["final_loss"] < entry["losses"][0] for entry in saved.values())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {row[0]: row[1] for row in rows[1:5]} == {name: f"{entry['rate']:.3g}" for name, entry in saved.items()}


def test_the_best_rate_is_chosen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(root, GPT)
    finals = {0.003: 2.0, 0.01: math.nan, 0.03: 1.5}
    tried: list[int] = []

    def fake(_recipe: Recipe, _data: Any, setting: Setting, _name: str) -> Any:
        tried.append(setting.steps)
        return type("Found", (), {"final": finals[round(setting.rate or 0, 4)]})

    monkeypatch.setattr(optimizers, "trial", fake)
    assert optimizers.best_rate(recipe, data_of(recipe), OptimizerSection(), 50) == pytest.approx(0.03)
    assert tried == [10, 10, 10]


def test_activations_and_their_slopes_by_formula() -> None:
    for name in activations.FUNCTIONS:
        x, y, slope = (tensor.double() for tensor in activations.values_and_slopes(name))
        bell, below = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi), 0.5 * (1 + torch.erf(x / math.sqrt(2)))
        tanh = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
        expected = {
            "relu": (x.clamp_min(0), (x > 0).double()),
            "gelu": (x * below, below + x * bell),
            "gelu_new": (0.5 * x * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * inner),
            "silu": (x * x.sigmoid(), x.sigmoid() * (1 + x * (1 - x.sigmoid()))),
        }[name]
        torch.testing.assert_close(y, expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(slope, expected[1], atol=1e-5, rtol=1e-5)


def test_each_activation_of_the_family_is_trained(root: Path) -> None:
    assert main(["compare", "activations", "--recipe", str(root / "recipe.yaml"), "--steps", "2"]) == 0
    saved = results(root, "activations")
    assert sorted(saved) == ["gelu", "gelu_new", "relu", "swiglu"]
    assert saved["swiglu"]["parameters"] > saved["relu"]["parameters"] == saved["gelu"]["parameters"]
    assert len({entry["losses"][0] for entry in saved.values()}) == 4
    assert (root / "tiny" / "compare" / "activation-functions.png").stat().st_size > 10_000


def test_a_family_without_a_choice(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert activations.compare_activations(tiny_recipe(root, {"family": "bigram"}), 2) == 0
    assert "model.family=bigram has no model.activation" in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_computes_the_same(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "compile", "--recipe", str(root / "recipe.yaml"), "--steps", "3"]) == 0
    saved = results(root, "compile")
    assert saved["eager"]["losses"] == pytest.approx(saved["compiled"]["losses"], abs=1e-4)
    assert saved["compiled"]["first_step_seconds"] > 5 * saved["eager"]["first_step_seconds"]
    assert f"losses differ by at most {saved['largest_difference']:.2g}" in capsys.readouterr().out


def test_cpu_only(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["compare", "devices", "--recipe", str(root / "recipe.yaml"), "--steps", "2"]) == 0
    assert list(results(root, "devices")) == ["cpu"]
    assert "cpu is the only device here" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [device.type for device in devices.available_devices()] == ["cpu", "cuda", "mps"]


def test_attention_implementations_agree_and_are_timed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "attention", "--recipe", str(root / "recipe.yaml"), "--steps", "1"]) == 0
    saved = results(root, "attention")
    assert saved["lengths"] == [8, 16, 32, 64, 128] and saved["window"] == 4
    assert all(0 <= difference < 1e-5 for difference in saved["differences"].values())
    assert all(len(times) == 5 and min(times) > 0 for times in saved["milliseconds"].values())
    assert "2 heads of 16, window 4, on cpu" in capsys.readouterr().out
    q, k, v = torch.randn(3, 1, 2, 20, 16).unbind()
    for name, way in attention.ways(0.25, 4).items():
        window = 4 if name.startswith("window") else None
        bias = Mask(True, window).bias(torch.arange(20), torch.arange(20), torch.float32)
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.25)
        torch.testing.assert_close(way(q, k, v), expected, atol=1e-5, rtol=1e-4)


def test_lengths_stay_within_memory() -> None:
    assert attention.lengths_for(128, 4096)[-1] ** 2 * 128 <= 2**27
    assert attention.lengths_for(6, 128) == [64, 128, 256, 512, 1024]


def test_missing_attention_and_data_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError, match="family=bigram has no attention"):
        attention.compare_attention(tiny_recipe(root, {"family": "bigram"}), 2)
    for words in ([], ["colors"], ["train.steps=9", "colors"]):
        with pytest.raises(RequestError, match="optimizers, activations, compile, devices, attention"):
            main(["compare", *words, "--recipe", "configs/teaching/gpt-oz.yaml"])
    with pytest.raises(RequestError, match=r"has no option --steep: its options are --help, --steps, --recipe"):
        main(["compare", "devices", "--steep=3", "--recipe", "configs/teaching/gpt-oz.yaml"])
    with pytest.raises(SystemExit):
        main(["compare", "devices", "--steps", "0", "--recipe", "configs/teaching/gpt-oz.yaml"])
    assert "is not a positive integer" in capsys.readouterr().err
