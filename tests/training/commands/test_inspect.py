"""The output of inspect: shapes are those of a real forward pass, layers are folded, comparisons need no torch."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import load_recipe
from configs.schema.models import ModelSection
from configs.schema.models.bigram import BigramSection
from configs.schema.models.gpt import GptSection
from tests.support.paths import CHECKOUT, recipe_file
from tests.support.training.shapes import SHAPES, VOCAB, small
from tests.support.training.tiny_run import GPT
from training.__main__ import main
from training.commands.inspect import folded, lines, output_shapes
from training.estimate import flops_per_token, parameters
from training.estimate.memory import checkpoint_bytes
from training.models.registry import build_model, init_weights

SECTIONS: dict[str, ModelSection] = {
    **SHAPES,
    "odd_expert_widths": small(moe_intermediate_size=13, num_experts_per_tok=3),
    "prediction": small(num_nextn_predict_layers=2),
    "gpt": GptSection(**GPT),
    "swiglu": GptSection(**{**GPT, "activation": "swiglu", "positions": "rope", "norm": "rms", "window": 4}),
    "bigram": BigramSection(),
}


def really(section: ModelSection, length: int) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The output shapes of every module in a real forward pass."""
    model = build_model(section, VOCAB)
    init_weights(model, 0)
    shapes: dict[str, tuple[tuple[int, ...], ...]] = {}
    for name, module in model.named_modules():

        def note(_m: Any, _i: Any, output: Any, name: str = name) -> None:
            shapes[name] = tuple(tuple(tensor.shape) for tensor in (output if isinstance(output, tuple) else (output,)))

        if name:
            module.register_forward_hook(note)
    ids = torch.randint(0, VOCAB, (2, length))
    depth = section.prediction_depth
    with torch.no_grad():
        model.eval()(ids, targets=[ids] * (1 + depth)) if depth else model.eval()(ids)
    if depth:
        shapes["lm_head"] = ((2, length, VOCAB),)  # in training it returns the loss
    return shapes


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("length", [3, 40])
def test_shapes_are_those_of_a_forward_pass(name: str, length: int) -> None:
    section = SECTIONS[name]
    printed = output_shapes(section, VOCAB, length, samples=2)
    shapes = {
        name: tuple(tuple(int(n) for n in re.findall(r"\d+", part)) for part in shape.split(", "))
        for name, (_, shape) in printed.items()
    }
    assert shapes == really(section, length)


def test_equal_layers_are_listed_once() -> None:
    rows = [(f"layers.{layer}{rest}", kind) for layer, kind in enumerate("aabba") for rest in ("", ".mlp")]
    rows = [("embed", "e"), *rows, ("decoder.layers.0.norm", "n"), ("norm", "n")]
    assert [name for name, _ in folded(rows)] == [
        "embed",
        *("layers.{0..1}", "layers.{0..1}.mlp", "layers.{2..3}", "layers.{2..3}.mlp", "layers.4", "layers.4.mlp"),
        "decoder.layers.0.norm",
        "norm",
    ]


@pytest.mark.parametrize("name", ["deepseek-teaching", "deepseek-v3", "gpt-oz"])
def test_the_output_for_a_recipe(name: str) -> None:
    recipe = load_recipe(recipe_file(name))
    output = lines(recipe)
    counts = parameters(recipe.model, recipe.vocab_size)
    for part, count in counts.by_part.items():
        assert any(line.startswith(part) and f"{count:,}" in line for line in output)
    cost = flops_per_token(recipe.model, recipe.vocab_size, recipe.train.context_length)
    assert any(f"{cost:.4g}" in line and "FLOPs per token" in line for line in output)
    assert f"lm_head OutputHead 1 x {recipe.train.context_length:,} x {recipe.vocab_size:,}" in [
        " ".join(line.split()) for line in output
    ]
    assert "active per token" + f"{counts.active:,}".rjust(40) in output
    if name == "deepseek-v3":
        assert any(re.match(r"model.layers.\{3..60\}.mlp.experts +Experts +4,096 x 7,168", line) for line in output)
        assert any(re.match(r"model.layers.61.eh_proj +Linear +1 x 4,096 x 7,168", line) for line in output)


def test_recipes_are_compared_without_torch() -> None:
    files = ["configs/teaching/gpt-oz.yaml", "configs/deepseek-v3.yaml"]
    words = ["inspect", "--recipe", "configs/demo.yaml", "--compare", *files, "train.context_length=64"]
    code = f"import sys; sys.modules['torch'] = None\nfrom training.__main__ import main\nsys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, *rows = (re.split(r"  +", line.strip()) for line in done.stdout.splitlines())
    assert [row[0] for row in rows] == ["gpt-oz", "deepseek-v3"]
    for file, row in zip(files, rows, strict=False):
        recipe = load_recipe(file, ["train.context_length=64"])
        cells, counts = dict(zip(head, row, strict=True)), parameters(recipe.model, recipe.vocab_size)
        assert cells["parameters"] == f"{counts.total:,}" and cells["active"] == f"{counts.active:,}"
        assert cells["FLOPs per token"] == f"{flops_per_token(recipe.model, recipe.vocab_size, 64):.4g}"
        value, unit = cells["checkpoint"].split()
        assert float(value) * {"MB": 1e6, "TB": 1e12}[unit] == pytest.approx(checkpoint_bytes(recipe), rel=5e-3)
    assert rows[1][1:6] == ["deepseek", "61", "128", "7168", "129,280"] and rows[1][-2].endswith("GB")


def test_a_recipe_without_training_or_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bare.yaml").write_text("run: {name: bare}\nmodel: {family: bigram}\ntokenizer: {vocab_size: 300}\n")
    assert main(["inspect", "--compare", str(tmp_path / "bare.yaml")]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row == ["bare", "bigram", "-", "-", "-", "300", "90,000", "0", "-", "-", "-"]
    assert main(["inspect", "--recipe", str(tmp_path / "bare.yaml")]) == 0
    assert ["model", "BigramModel", "1", "x", "16", "x", "300"] in map(str.split, capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("words", [[], ["--compare", "train.steps=3"]])
def test_a_missing_recipe_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *words])
    assert ended.value.code == 2 and "pass --recipe FILE, or --compare FILE" in capsys.readouterr().err
