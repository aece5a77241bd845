"""What is trained: patterns, rates and new tables; and what makes no sense is refused."""

from typing import Any

import pytest
import torch

from artefacts.errors import RequestError
from configs.schema.adapter import LoraSection
from configs.schema.train import OptimizerSection
from tests.support.training.families import VOCAB, gpt
from tests.support.training.shapes import small
from training.models.registry import build_model, init_weights
from training.optim.build import build_optimizer
from training.optim.trained_part import EVERYTHING, TrainedPart


def prepared(part: TrainedPart, section: Any = None, new: bool = True) -> Any:
    model = build_model(section or small(), VOCAB)
    init_weights(model, 1)
    part.prepare(model, 0, new)
    return model


def trained(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_by_default_everything_is_trained() -> None:
    model = prepared(EVERYTHING)
    assert trained(model) == set(dict(model.named_parameters()))
    assert EVERYTHING.check(lambda: build_model(small(), VOCAB)) == ""


def test_layers_are_frozen_by_pattern() -> None:
    part = TrainedPart(freeze=("model.layers.0.*", "model.embed_tokens.weight"))
    names = trained(prepared(part))
    assert names == {n for n in trained(prepared(EVERYTHING)) if not n.startswith(("model.layers.0.", "model.embed"))}
    assert part.check(lambda: build_model(small(), VOCAB)).startswith("trains ")


def test_rates_are_set_by_the_first_pattern_that_matches() -> None:
    part = TrainedPart(rate_scales={"model.layers.1.*": 0.5, "*.o_proj.weight": 0.1})
    model = prepared(part)
    section = OptimizerSection()
    groups = build_optimizer(model, section, 1e-3, rate_scales=part.rate_scales).param_groups
    scales = {id(p): group["rate_scale"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        wanted = 0.5 if "layers.1." in name else 0.1 if name.endswith("o_proj.weight") else 1.0
        assert scales[id(parameter)] == wanted, name


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_every_optimizer_trains_adapters(name: str) -> None:
    part = TrainedPart(LoraSection(rank=8, alpha=8, targets=("attention", "routed_experts")))
    model = prepared(part)
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimizerSection(name=name, weight_decay=0.0), 1e-2)
    assert [group for group in optimizer.param_groups if group.get("moe")] == []
    ids = torch.randint(0, VOCAB, (2, 9))
    for _ in range(2):
        optimizer.zero_grad()
        (model(ids, [ids])["cross_entropy"] / ids.numel()).backward()
        optimizer.step()
    moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert moved == trained(model) == {key for key in before if ".lora_" in key}


def test_a_table_starts_from_new_weights() -> None:
    old, head = prepared(EVERYTHING), TrainedPart(reset=("head",))
    model = prepared(head)
    assert not torch.equal(model.lm_head.weight, old.lm_head.weight)
    assert torch.equal(model.model.embed_tokens.weight, old.model.embed_tokens.weight)
    assert torch.equal(prepared(head).lm_head.weight, model.lm_head.weight)
    # A resumed run restores the table from its checkpoint.
    assert torch.equal(prepared(head, new=False).lm_head.weight, old.lm_head.weight)
    lora = TrainedPart(LoraSection(rank=2, alpha=2), reset=("head",))
    names = trained(prepared(lora))
    assert {name for name in names if ".lora_" not in name} == {"lm_head.weight"} and len(names) > 1
    tied = prepared(TrainedPart(reset=("embeddings", "head")), gpt())
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert not torch.equal(tied.lm_head.weight, prepared(EVERYTHING, gpt()).lm_head.weight)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            TrainedPart(freeze=("model.layers.0.attn.*",)),
            r"finetune.freeze: no .* matches model.layers.0.attn.\*; similar",
        ),
        (TrainedPart(freeze=("*",)), r"finetune.freeze matches every parameter, so nothing would be trained"),
        (TrainedPart(rate_scales={"*.lora_B": 2}), r"finetune.learning_rates: no trained parameter matches \*.lora_B"),
        (
            TrainedPart(freeze=("model.*",), rate_scales={"model.norm.*": 2}),
            r"learning_rates: no trained .* model.norm",
        ),
        (
            TrainedPart(freeze=("lm_head.*",), reset=("head",)),
            r"finetune.freeze matches lm_head.weight, which finetune.r",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(part: TrainedPart, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        part.check(lambda: build_model(small(), VOCAB))
