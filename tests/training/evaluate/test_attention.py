"""Attention maps: a model's weights, head statistics compared with their definition, and the command's files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from artefacts.errors import RequestError
from configs.schema.models.gpt import GptSection
from tests.support.training.shapes import SHAPES, VOCAB, small
from tests.support.training.tiny_run import GPT, as_trained, tiny_model, tiny_recipe
from training.__main__ import main
from training.commands import attention
from training.evaluate.attention.collect import AttentionMap, attention_maps
from training.evaluate.attention.statistics import head_numbers
from training.layers.masks import Mask
from training.layers.multi_head import Source
from training.layers.transformer_layer import TransformerLayer
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.models.registry import build_model
from training.models.registry import init_weights as init_any

PNG = b"\x89PNG"


def ids(length: int = 20) -> torch.Tensor:
    return torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["query_latent", "yarn_uneven_mscale"])
def test_latent_attention_equals_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    from tests.training.models.test_parity import carry

    config = SHAPES[name]
    model = DeepseekForCausalLM(config, VOCAB)
    init_weights(model, 0)
    maps = attention_maps(model.eval(), ids())
    with torch.no_grad():
        expected = carry(model, config).eval()(ids(), output_attentions=True).attentions
    assert [one.name for one in maps] == ["0", "1"]
    for one, weights in zip(maps, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one.weights_NTL), weights[0], atol=1e-5, rtol=1e-4)
    assert all(layer.self_attn.attention_hook is None for layer in model.model.blocks)


@pytest.mark.parametrize("changes", [{}, {"positions": "alibi"}, {"positions": "rope", "window": 4}])
def test_dense_attention_times_values_equals_the_layer(changes: dict[str, Any]) -> None:
    model = build_model(GptSection(**{**GPT, **changes}), VOCAB)
    init_any(model, 0)
    outputs: list[torch.Tensor] = []
    layer = model.model.layers[1].self_attn
    layer.qkv_proj.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    layer.o_proj.register_forward_hook(lambda _m, inputs, _o: outputs.append(inputs[0]))
    (attention_map,) = attention_maps(model.eval(), ids(), layers=[1])
    values_NTH = outputs[0].unflatten(-1, (3, 2, -1))[0, :, 2].transpose(0, 1)
    mixed_NTH = torch.from_numpy(attention_map.weights_NTL) @ values_NTH
    torch.testing.assert_close(mixed_NTH.transpose(0, 1).flatten(1), outputs[1][0], atol=1e-5, rtol=1e-4)


def test_multi_token_prediction_modules_do_not_run() -> None:
    model = build_model(small(num_nextn_predict_layers=1), VOCAB)
    init_any(model, 0)
    assert [one.name for one in attention_maps(model, ids())] == ["0", "1"]


class TwoStacks(nn.Module):
    """As an encoder-decoder is built: two stacks of layers, those of the decoder with cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        config = GptSection(**GPT)
        self.embed = nn.Embedding(VOCAB, config.hidden_size)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList([TransformerLayer(config, True) for _ in range(2)])})
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList([TransformerLayer(config, True, cross=True)])})

    def forward(self, input_ids: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        x, y = self.embed(source), self.embed(input_ids)
        for layer in self.encoder["layers"]:  # type: ignore[union-attr]
            x = layer(x, Mask(False))
        for layer in self.decoder["layers"]:  # type: ignore[union-attr]
            y = layer(y, Mask(True), source=Source(x, Mask(False)))
        return y


def test_two_stacks_and_cross_attention_are_distinguished() -> None:
    maps = attention_maps(TwoStacks(), ids(5), source=ids(7))
    shapes = {one.name: one.weights_NTL.shape for one in maps}
    assert shapes == {"encoder 0": (2, 7, 7), "encoder 1": (2, 7, 7), "decoder 0": (2, 5, 5), "cross 0": (2, 5, 7)}
    across = next(one for one in maps if one.cross)
    assert all(head.to_itself is head.before is head.after is None for head in head_numbers(across))
    both_ways = head_numbers(maps[0])[0]
    assert both_ways.after == pytest.approx(float(maps[0].weights_NTL[0].diagonal(1).mean()), rel=1e-5)


def test_causal_heads_are_measured_by_visible_positions() -> None:
    counts = np.arange(1, 7)
    back = np.tril(np.ones((6, 6))) / counts[:, None]
    both = np.full((6, 6), 1 / 6)
    heads = head_numbers(AttentionMap("0", 0, False, np.stack([back, back[::-1, ::-1], both]).astype(np.float32)))
    assert [head.entropy_share for head in heads] == pytest.approx([1.0] * 3)
    steps = sum(1 / n for n in counts[1:]) / 5
    assert [head.before for head in heads] == [pytest.approx(steps), None, pytest.approx(1 / 6)]
    assert [head.after for head in heads] == [None, pytest.approx(steps), pytest.approx(1 / 6)]


def test_even_attention_has_the_most_entropy() -> None:
    counts = np.arange(1, 7)
    even = np.tril(np.ones((6, 6))) / counts[:, None]
    (numbers,) = head_numbers(AttentionMap("0", 0, False, even[None].astype(np.float32)))
    assert numbers.entropy == pytest.approx(sum(math.log(n) for n in counts) / 6, rel=1e-6)
    assert numbers.entropy_share == pytest.approx(1.0)
    assert numbers.to_itself == pytest.approx(sum(1 / n for n in counts) / 6, rel=1e-6)
    assert numbers.before == pytest.approx(sum(1 / n for n in counts[1:]) / 5, rel=1e-6)
    assert numbers.after is None


def test_statistics_equal_a_plain_computation() -> None:
    generator = np.random.default_rng(0)
    weights = generator.dirichlet(np.ones(5), size=(2, 5)).astype(np.float32)
    # The second head leaves out one key, which the first shows to be visible.
    weights[1, :, 2] = 0
    weights[1] /= weights[1].sum(-1, keepdims=True)
    for head, numbers in enumerate(head_numbers(AttentionMap("3", 3, False, weights))):
        entropies = [-sum(w * math.log(w) for w in row if w) for row in weights[head].tolist()]
        assert numbers.entropy == pytest.approx(sum(entropies) / 5, rel=1e-5)
        assert numbers.entropy_share == pytest.approx(sum(entropies) / 5 / math.log(5), rel=1e-5)
        assert numbers.to_itself == pytest.approx(sum(weights[head][i, i] for i in range(5)) / 5, rel=1e-5)
        assert numbers.before == pytest.approx(sum(weights[head][i, i - 1] for i in range(1, 5)) / 4, rel=1e-5)
        assert numbers.after == pytest.approx(sum(weights[head][i, i + 1] for i in range(4)) / 4, rel=1e-5)


def test_a_single_token_attends_to_itself() -> None:
    (numbers,) = head_numbers(AttentionMap("0", 0, False, np.ones((1, 1, 1), np.float32)))
    assert (numbers.to_itself, numbers.before, numbers.entropy, numbers.entropy_share) == (1.0, None, 0.0, None)


def test_the_command_writes_a_map_of_every_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tmp_path, GPT)
    as_trained(monkeypatch, attention, tiny_model(recipe))
    words = ["evaluate", "--recipe", str(tmp_path / "recipe.yaml"), "attention"]
    assert main([*words, "--text", "a $x$\nb"]) == 0
    folder = tmp_path / "tiny" / "attention"
    heads = [f"layer-{layer:02d}-head-{head:02d}.png" for layer in range(2) for head in range(2)]
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures == sorted([*heads, "layer-00.png", "layer-01.png"])
    assert all(path.read_bytes().startswith(PNG) for path in folder.glob("*.png"))
    contents = json.loads((folder / "attention.json").read_text())
    assert contents["tokens"]["read"] == ["a", "␣", "$", "x", "$", "\\n", "b"] and len(contents["heads"]) == 4
    weights = np.load(folder / "weights.npz")
    assert weights["1"].shape == (2, 7, 7)
    out = capsys.readouterr().out
    assert f"{contents['heads'][3]['entropy']:.3f}" in out and out.count("\n") == 6
    # One layer of a validation document; nothing is left of the previous maps.
    assert main([*words, "--layers", "1"]) == 0
    assert sorted(path.name for path in folder.glob("*.png")) == ["layer-01-head-00.png", "layer-01-head-01.png",
                                                                  "layer-01.png"]  # fmt: skip
    assert json.loads((folder / "attention.json").read_text())["tokens"]["read"][:3] == ["T", "h", "e"]
    assert len(np.load(folder / "weights.npz")["1"][0]) == 32
    assert [path.name for path in (tmp_path / "tiny").iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ({"family": "bigram"}, {}, "model.family=bigram has no attention"),
        (GPT, {"layers": [2]}, "there is no layer 2; the model has layers 0 to 1"),
        (GPT, {"text": "é"}, "does not know 'é'"),
        (GPT, {"text": "a" * 65}, "--text has 65 tokens, but a map shows at most 64"),
        (GPT, {"text": ""}, "--text has no tokens"),
        (GPT, {"target": "a"}, "--target is for encoder-decoder models only"),
    ],
)
def test_impossible_maps_are_refused(
    model: dict[str, Any], changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, model)
    as_trained(monkeypatch, attention, None)
    with pytest.raises(RequestError, match=words):
        attention.evaluate_attention(recipe, **changes)
    assert not (tmp_path / "tiny" / "attention").exists()
