"""Classifiers: weights of the backbone, learning rates, freezing, balancing, and expert parallelism."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from artefacts.errors import RequestError
from configs.schema.train import TrainSection
from tests.support.training.families import VOCAB, built, classifier, encoder, gpt, micro_batch
from tests.support.training.one_step import moved_by_a_step
from tests.support.training.shapes import SHAPES, small
from tests.support.training.workers import fork_workers
from training.data.batch import Batch
from training.export.weights import load_backbone, released_weights
from training.models.classifier import pooled
from training.objective import Objective
from training.optim.build import parameter_groups
from training.trainer.load_balancer import Balancer

BACKBONES = {"encoder": encoder(), "gpt": gpt(tie_word_embeddings=False), "deepseek": SHAPES["groups"]}


def weights_of(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if hasattr(model, "routers"):
        return released_weights(model)
    return iter(model.named_parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_loads_the_weights_of_its_family(name: str) -> None:
    section = BACKBONES[name]
    source, model = built(section, 1), built(classifier(section), 2)
    head = model.score.weight.clone()
    load_backbone(model, weights_of(source))
    ids = micro_batch(section, seed=4).ids
    torch.testing.assert_close(model.hidden(ids), source.hidden(ids), atol=0, rtol=0)
    assert torch.equal(model.score.weight, head)


@torch.no_grad()
def test_prediction_layers_are_left_out_but_no_other_layers() -> None:
    source, model = built(small(num_nextn_predict_layers=1)), built(classifier(small()), 2)
    load_backbone(model, released_weights(source))
    ids = torch.arange(9)[None]
    assert torch.equal(model.hidden(ids), source.hidden(ids))
    with pytest.raises(RequestError, match="have a layer 2, but the backbone has 2"):
        load_backbone(model, released_weights(built(small(num_hidden_layers=3))))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"model.embed_tokens.weight": torch.zeros(7, 32)}, r"embed_tokens.weight of shape \(7, 32\).*vocabulary"),
        ({"encoder.embed_tokens.weight": torch.zeros(VOCAB, 32)}, "the weights lack model.embed_tokens.weight"),
        ({"model.layers.0.mlp.gate.weight": torch.zeros(8, 32)}, "no tensor named model.layers.0.mlp.gate.weight"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_backbone(built(classifier(encoder())), iter(weights.items()))


def test_pooling_equals_that_of_each_text_alone() -> None:
    x_BTD, lengths = torch.randn(3, 5, 4), torch.tensor([5, 1, 3])
    texts = [row[:length] for row, length in zip(x_BTD, lengths, strict=True)]
    expected = {
        "first": [text[0] for text in texts],
        "last": [text[-1] for text in texts],
        "mean": [text.mean(0) for text in texts],
    }
    for kind, rows in expected.items():
        torch.testing.assert_close(pooled(x_BTD, kind, lengths), torch.stack(rows))


def test_meaningless_combinations_are_refused() -> None:
    with pytest.raises(ValidationError, match="pooling=first: a gpt backbone"):
        classifier(gpt(), pooling="first")
    with pytest.raises(ValidationError, match="backbone_rate=0"):
        classifier(encoder(), backbone_rate=0)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_has_its_own_rate(name: str) -> None:
    section = classifier(BACKBONES[name], backbone_rate=0.25)
    model = built(section)
    groups = parameter_groups(model, 0.1, muon=True, rate_scales=section.rate_scales)
    scales = {id(p): group["rate_scale"] for group in groups for p in group["params"]}
    assert scales == {id(p): 0.25 if key.startswith("model.") else 1.0 for key, p in model.named_parameters()}
    orthogonal = {id(p) for group in groups if group.get("orthogonal") for p in group["params"]}
    named = dict(model.named_parameters())
    assert not orthogonal & {id(named[key]) for key in ("score.weight", "model.embed_tokens.weight")}
    assert id(named["model.layers.0.self_attn.o_proj.weight"]) in orthogonal
    assert [group["moe"] for group in groups if "moe" in group] == ([True] if name == "deepseek" else [])


def test_a_frozen_backbone_keeps_nothing_for_the_backward_pass() -> None:
    section = classifier(SHAPES["groups"], backbone_rate=0, weights="runs/other")
    model = built(section).train()
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        loss = micro_batch(section).loss(model)
    assert not any(len(shape) > 2 for shape in kept)
    loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is not None] == ["score.weight", "score.bias"]
    assert Balancer(model, 0.1).update() == []
    train = TrainSection(context_length=9, global_batch_tokens=27, steps=1, learning_rate=1e-3, sequence_loss=0.1)
    assert set(Objective(section, train).weights) == {"cross_entropy"}


def test_routers_are_balanced_as_in_the_language_model() -> None:
    section = classifier(SHAPES["groups"], pooling="last")
    model, source = built(section).train(), built(SHAPES["groups"]).train()
    load_backbone(model, released_weights(source))
    batch = micro_batch(section)
    lengths = batch.more["lengths"]
    assert lengths.min() < batch.ids.shape[1], "no padding"
    names = ["sequence_balance", "load_balance", "router_z"]
    routers = [one.model.layers[1].mlp.gate.router for one in (model, source)]
    for router in routers:
        router.load_share = torch.linspace(0, 2, router.experts)
    actual = model(batch.ids, [batch.labels], lengths, balance=names)
    # Row by row, so that there is no padding.
    rows = [row[:length][None] for row, length in zip(batch.ids, lengths.tolist(), strict=True)]
    expected = [source(row, [row], None, balance=names) for row in rows]
    for name in names:
        torch.testing.assert_close(actual[name], sum(losses[name] for losses in expected))
    train = TrainSection(
        context_length=9, global_batch_tokens=27, steps=1, learning_rate=1e-3, router_z_loss=0.1, load_balance_loss=0.1
    )
    divisors = Objective(section, train).counts(Batch(batch.ids, batch.labels, lengths=lengths))
    assert divisors["router_z"] == divisors["load_balance"] == int(lengths.sum())
    counts, expected_counts = (router.pop_counts() for router in routers)
    assert counts.sum() == lengths.sum() * 4 and torch.equal(counts, expected_counts)


@pytest.mark.engine
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_engine_scales_the_rate_and_freezes(stage: int, tmp_path: Path) -> None:
    """One step of SGD from the same weights at rates 1, 0.25 and 0; AutoEP has the experts that are trained."""
    check = functools.partial(_check_rates, stage)
    fork_workers(check, 1, tmp_path, tmp_path / "log")


def _check_rates(stage: int, _folder: Path) -> None:
    moved = {
        rate: moved_by_a_step(classifier(small(), backbone_rate=rate, weights="there"), stage)
        for rate in (1.0, 0.25, 0.0)
    }
    for key, step in moved[1.0].items():
        if key.startswith("score."):
            assert all(torch.allclose(other[key], step, rtol=1e-4, atol=1e-7) for other in moved.values()), key
        else:
            assert torch.allclose(moved[0.25][key], 0.25 * step, rtol=1e-3, atol=1e-7), key
    still = {key: step for key, step in moved[0.0].items() if not key.startswith("score.")}
    assert len(still) == len(moved[1.0]) - 3, "AutoEP makes two stacks of gate and up"
    assert not any(step.any() for step in still.values())
    assert sum(bool(step.any()) for step in moved[1.0].values()) > 10
