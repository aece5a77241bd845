"""Adapters compute the same as peft's, and frozen weights cost no gradients."""

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema.adapter import LoraSection
from tests.support.training.shapes import VOCAB, small
from training.layers import cpu
from training.layers.adapters.attach import adapters_of, attach_adapters, init_adapters, load_adapters
from training.layers.adapters.modules import LoraLinear
from training.layers.cpu.experts import routed_experts
from training.layers.linear import Linear, linear
from training.layers.lm_head import linear_cross_entropy_sum
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.models.registry import build_model

EVERYWHERE = LoraSection(rank=8, alpha=4, targets=("attention", "dense", "shared_experts", "routed_experts"))


class OneLayer(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.layer = Linear(24, 40, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


def pair(bias: bool, dora: bool) -> tuple[LoraLinear, nn.Module]:
    """One of our layers and one of peft's, with the same weights."""
    base = OneLayer(bias)
    ours = copy.deepcopy(base.layer).requires_grad_(False)
    ours.__class__ = LoraLinear
    assert isinstance(ours, LoraLinear)
    ours.add_adapter(LoraSection(rank=5, alpha=3, dora=dora))
    ours.init_adapter("0/layer")
    base.layer = copy.deepcopy(base.layer)
    base.layer.__class__ = nn.Linear  # type: ignore[assignment]
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=5, lora_alpha=3, target_modules=["layer"], use_dora=dora))
    layer = theirs.base_model.model.layer
    with torch.no_grad():
        ours.lora_B.normal_()
        if ours.lora_magnitude is not None:
            ours.lora_magnitude.mul_(1.5)
            layer.lora_magnitude_vector["default"].weight.copy_(ours.lora_magnitude)
        layer.lora_A["default"].weight.copy_(ours.lora_A)
        layer.lora_B["default"].weight.copy_(ours.lora_B)
    return ours, theirs


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_layer_is_the_same_as_in_peft(bias: bool, dora: bool, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:  # as on a GPU
        monkeypatch.setattr(cpu.low_rank, "linear", lambda *_: None)
    ours, theirs = pair(bias, dora)
    x = torch.randn(3, 7, 24, requires_grad=True)
    our_x, their_x = x.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    out, wanted = ours(our_x), theirs(their_x)
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    wanted.backward(upstream)
    torch.testing.assert_close(our_x.grad, their_x.grad, atol=1e-5, rtol=1e-5)
    grads = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert len(grads) == len([p for p in ours.parameters() if p.grad is not None]) == 2 + dora
    for name, grad in grads.items():
        factor = name.split("layer.")[-1].split(".")[0].removesuffix("_vector")
        torch.testing.assert_close(getattr(ours, factor).grad, grad, atol=1e-5, rtol=1e-5, msg=name)
    bias_O = 0 if ours.bias is None else ours.bias
    torch.testing.assert_close(x @ ours.effective_weight().t() + bias_O, wanted, atol=1e-5, rtol=1e-5)


def test_training_starts_from_the_model_as_it_was() -> None:
    model = DeepseekForCausalLM(small(num_nextn_predict_layers=1), VOCAB)
    init_weights(model, 0)
    ids = torch.randint(0, VOCAB, (2, 9))
    before = model(ids)
    attach_adapters(model, EVERYWHERE)
    init_adapters(model, 0)
    torch.testing.assert_close(model(ids), before, atol=1e-5, rtol=0)
    names = dict(adapters_of(model))
    assert len(names) == 5 * 3 - 3 + 3 + 2 * 3 + 2 * 2  # attention without a query latent, dense, shared and stacks
    assert all(adapter.lora_A.std() > 0 and not adapter.lora_B.any() for adapter in names.values())
    model(ids, [ids, ids])["mtp_1"].backward()
    grads = {name: p.grad is not None for name, p in model.named_parameters()}
    assert {name for name, has in grads.items() if has} == {name for name in grads if ".lora_" in name}


def test_decoding_with_a_cache_uses_the_adapters() -> None:
    model = build_model(small(), VOCAB).eval()
    init_weights(model, 0)
    attach_adapters(model, EVERYWHERE)
    init_adapters(model, 0)
    with torch.no_grad():
        for _, adapter in adapters_of(model):
            adapter.lora_B.normal_(0, 0.2)
        ids = torch.randint(0, VOCAB, (1, 9))
        cache = model.new_cache(1, 9)
        steps = []
        for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:]):
            steps.append(model.lm_head(model.hidden(part, cache=cache)))
            cache.commit([sum(step.shape[1] for step in steps)])
        torch.testing.assert_close(torch.cat(steps, dim=1), model(ids), atol=1e-4, rtol=1e-4)


def test_adapters_of_another_model_are_refused() -> None:
    models = [build_model(small(hidden_size=width), VOCAB) for width in (32, 40)]
    for model in models:
        attach_adapters(model, EVERYWHERE)
    weights = {name: p for name, p in models[1].named_parameters() if ".lora_" in name}
    with pytest.raises(Exception, match=r"lora_A of shape \(8, 40\), but the model has shape \(8, 32\)"):
        load_adapters(models[0], weights.items())
    weights = {name: p for name, p in models[0].named_parameters() if ".expert_lora." in name}
    with pytest.raises(Exception, match=r"lacks model.layers.0.self_attn.q_proj.lora_A .* different model"):
        load_adapters(models[0], weights.items())


def experts(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    selected = torch.arange(2 * len(x)).view(-1, 2) % 4
    out = routed_experts(x, torch.full((len(x), 2), 0.5), selected, *weights)
    assert out is not None
    return out.sum()


#: A function of rows and of weights of these shapes.
OPERATIONS: dict[str, tuple[Callable[..., torch.Tensor | None], list[tuple[int, ...]]]] = {
    "experts": (experts, [(4, 12, 8), (4, 8, 6)]),
    "rms_norm": (lambda x, weight: cpu.norms.rms_norm(x, weight, 1e-6), [(8,)]),
    "loss": (lambda x, weight: linear_cross_entropy_sum(x, weight, torch.arange(len(x)) % 11), [(11, 8)]),
    "linear": (linear, [(5, 8)]),
}


class Operations(TorchDispatchMode):
    """Counts the operations that it sees."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_gradient_of_a_frozen_weight_is_not_computed(name: str) -> None:
    function, shapes = OPERATIONS[name]
    weights, rows = [torch.randn(shape) for shape in shapes], torch.randn(40, 8)
    inputs, counts = [], []
    for frozen in (False, True):
        x, copies = rows.clone().requires_grad_(), [weight.clone().requires_grad_(not frozen) for weight in weights]
        with Operations() as operations:
            out = function(x, *copies)
            assert out is not None
            out.sum().backward()
        inputs.append(x.grad)
        counts.append(operations.count)
    assert torch.equal(*inputs) and inputs[0].any()
    # At least one operation per weight: the product or sum, and what accumulates it.
    assert counts[1] <= counts[0] - len(shapes)
