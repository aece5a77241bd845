"""The estimate of fine-tuning follows what is trained."""

import re
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.load import load_recipe
from configs.schema import Recipe
from tests.support.paths import DEMO_RECIPE
from tests.support.training.families import gpt
from tests.support.training.shapes import SHAPES, VOCAB, small
from training.commands.estimate import finetuning_lines
from training.estimate.finetuning import finetuning_recipe, trained_numbers
from training.estimate.fitting import advice
from training.estimate.flops import flops_per_token
from training.estimate.memory import checkpoint_bytes, memory
from training.estimate.parameter_shapes import parameter_shapes
from training.layers.adapters.modules import LoraLinear
from training.layers.cpu import attention as cpu_attention
from training.layers.cpu import low_rank
from training.models.registry import build_model, init_weights
from training.optim.trained_part import TrainedPart

MODELS = {
    **{name: SHAPES[name] for name in ("query_latent", "no_dense_layer", "all_dense", "two_shared", "tied")},
    "biases": small(attention_bias=True, mlp_bias=True, num_nextn_predict_layers=2),
    "noise": small(router_noise={"kind": "learned"}),
    "gpt": gpt(),
    "gpt_bare": gpt(bias=False, positions="rope", norm="rms", activation="swiglu", tie_word_embeddings=False),
}
STAGES: dict[str, dict[str, Any]] = {
    "all": {},
    "lora": {"lora": {"rank": 8, "alpha": 8, "targets": ["attention", "dense", "shared_experts", "routed_experts"]}},
    "dora": {"lora": {"rank": 3, "alpha": 8, "dora": True}, "reset": ["head"]},
    "freeze": {"freeze": ["*.experts.*", "model.embed_tokens.*", "model.layers.0.*"]},
}


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_equal_the_built_model(name: str) -> None:
    with torch.device("meta"):
        model = build_model(MODELS[name], VOCAB)
    assert dict(parameter_shapes(MODELS[name], VOCAB)) == {key: tuple(p.shape) for key, p in model.named_parameters()}


def demo(*overrides: str, **stage: Any) -> Recipe:
    recipe = load_recipe(DEMO_RECIPE, ["finetune.max_length=256", *overrides])
    changed = type(recipe.finetune[0])(**{**recipe.finetune[0].model_dump(), **stage})
    return recipe.model_copy(update={"finetune": (changed,)})


@pytest.mark.parametrize("name", STAGES)
def test_trained_numbers_equal_the_prepared_model(name: str) -> None:
    recipe = demo(**STAGES[name])
    (stage,) = recipe.finetune
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.vocab_size)
    TrainedPart.of(stage).prepare(model, 0, new=False)
    wanted = {key: p.numel() for key, p in model.named_parameters() if p.requires_grad}
    numbers = trained_numbers(recipe, stage)
    assert numbers.total == sum(wanted.values())
    assert numbers.experts == sum(number for key, number in wanted.items() if ".experts." in key)
    assert numbers.adapters == sum(number for key, number in wanted.items() if ".lora_" in key)
    assert numbers.head == ("lm_head.weight" in wanted)


def test_flops_of_a_stage_that_trains_everything_are_those_of_pretraining() -> None:
    (stage,) = demo().finetune
    for section in MODELS.values():
        for predicts in (True, False):
            expected = flops_per_token(section, VOCAB, 24, predicts)
            assert flops_per_token(section, VOCAB, 24, predicts, stage) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", [*STAGES, "dense_lora", "last_layer", "head"])
@pytest.mark.parametrize("model_name", ["query_latent", "tied", "gpt_bare"])
def test_flops_equal_those_of_the_built_model(model_name: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section, batch, length = MODELS[model_name], 2, 24
    more: dict[str, dict[str, Any]] = {
        "dense_lora": {"lora": {"rank": 4, "alpha": 8, "targets": ["dense"]}},
        "last_layer": {"freeze": ["model.layers.0.*", "model.embed_tokens.weight", "lm_head.weight"]},
        "head": {"freeze": ["model.*"]},
    }
    if model_name == "gpt_bare":
        more["lora"] = {"lora": {"rank": 8, "alpha": 8}}
    if model_name == "tied":
        more |= {"dora": {"lora": {"rank": 3, "alpha": 8, "dora": True}}, "head": {"freeze": ["model.layers.*"]}}
    (stage,) = demo(**{**STAGES, **more}[name]).finetune
    # With blocks of one query, blocked attention skips the future exactly.
    monkeypatch.setattr(cpu_attention, "QUERY_BLOCK", 1)
    # The counter does not see in-place products, with which the CPU path adds the adapter's. The norms of DoRA are
    # computed once per pass and not per token.
    monkeypatch.setattr(low_rank, "linear", lambda *_: None)
    monkeypatch.setattr(LoraLinear, "_row_norms", lambda layer: layer.lora_magnitude.detach())
    model = build_model(section, VOCAB)
    init_weights(model, 0)
    TrainedPart(stage.lora, reset=stage.reset).prepare(model, 0, new=True)
    for key, parameter in model.named_parameters() if stage.freeze else ():
        parameter.requires_grad_(not any(fnmatchcase(key, pattern) for pattern in stage.freeze))
    products = {torch.ops.aten._grouped_mm: lambda a, b, *_, **__: 2 * a[-2] * a[-1] * b[-1]}
    with FlopCounterMode(display=False, custom_mapping=products) as counter:
        model(torch.randint(0, VOCAB, (batch, length))).mean().backward()
    expected = flops_per_token(section, VOCAB, length, stage=stage) * batch * length
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_state_gradients_and_checkpoints_follow_the_trained_part() -> None:
    full, lora = (demo("launch.processes=1", **STAGES[name]) for name in ("all", "lora"))
    share = trained_numbers(lora, lora.finetune[0]).total / trained_numbers(full, full.finetune[0]).total
    assert 0 < share < 0.1
    parts = [memory(finetuning_recipe(r, r.finetune[0]), "cpu", stage=r.finetune[0]).parts for r in (full, lora)]
    for part in ("optimizer state", "gradients", "master weights"):
        assert parts[1][part] == pytest.approx(share * parts[0][part], rel=0.01), part
    assert parts[1]["weights"] > parts[0]["weights"]
    bytes_of = [checkpoint_bytes(r, r.finetune[0]) for r in (full, lora)]
    # fp32 weights instead of fp32 weights with two states.
    assert bytes_of[1] / bytes_of[0] == pytest.approx(1 / 3 + share, rel=0.05)
    assert "trains 4,035,360 parameters, 100.00%" in finetuning_lines(full)[-1]
    flops = [float(re.findall(r"in (\S+) FLOPs per token;", finetuning_lines(r)[-1])[0]) for r in (full, lora)]
    assert 2 / 3 < flops[1] / flops[0] < 0.8


def test_a_stage_that_trains_everything_is_estimated_as_pretraining() -> None:
    recipe = demo("train.context_length=256", "train.zero_stage=2")
    (stage,) = recipe.finetune
    same = finetuning_recipe(recipe, stage)
    assert memory(same, "cuda", stage=stage) == memory(same, "cuda")
    assert checkpoint_bytes(recipe, stage) == checkpoint_bytes(recipe)


def test_advice_makes_a_stage_of_shorter_samples_fit() -> None:
    sizes = ("train.context_length=1024", "train.global_batch_tokens=16384", "finetune.batch_examples=64")
    sizes += ("train.micro_batch=16", "launch.processes=1", "model.max_position_embeddings=1024")
    recipe = demo(*sizes)
    (stage,) = recipe.finetune
    peaks = {
        size: memory(finetuning_recipe(demo(*sizes, f"train.micro_batch={size}"), stage), "cuda", stage=stage).peak
        for size in (2, 4, 16)
    }
    assert peaks[2] < peaks[4] < peaks[16]
    assert advice(recipe, int(peaks[4]), "cuda", stage) == "set train.micro_batch=4"
    assert advice(recipe, int(peaks[4]) - 1, "cuda", stage) == "set train.micro_batch=2"
    assert advice(recipe, int(peaks[2] / 100), "cuda", stage).endswith(
        "a shorter finetune.max_length or a smaller model"
    )
