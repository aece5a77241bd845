"""Layers on a CUDA device give the same results as on CPU."""

import pytest
import torch

from configs.load import load_recipe
from tests.support.training.engine_job import RECIPE, SyntheticTokens
from tests.training.layers.test_transformer_layer import HEADS, LENGTH, MASKS, drawn, valid_rows
from training.inference.generate import Limits, generate_batch
from training.inference.sampling import Sampling
from training.layers.attention import attention
from training.layers.lm_head import linear_cross_entropy_sum, linear_token_cross_entropy
from training.layers.masks import Mask
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.objective import Objective

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_loss_and_gradients_equal_those_on_the_cpu(checkpointing: str) -> None:
    recipe = load_recipe(RECIPE)
    batch = SyntheticTokens(recipe).global_batch(0)
    seen = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
        init_weights(model, 1)
        model.set_activation_checkpointing(checkpointing)
        model.to(device).train()
        loss, targets = Objective(recipe.model, recipe.train).cross_entropy(model, batch.to(device))
        (loss / targets).backward()
        seen.append((loss.item() / targets.item(), {n: p.grad.cpu() for n, p in model.named_parameters()}))
    assert seen[0][0] == pytest.approx(seen[1][0], abs=1e-4)
    for name, gradient in seen[0][1].items():
        torch.testing.assert_close(seen[1][1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_bf16_runs_on_the_grouped_path() -> None:
    recipe = load_recipe(RECIPE)
    batch = SyntheticTokens(recipe).global_batch(0).to(torch.device("cuda"))
    model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
    init_weights(model, 1)
    model.to("cuda", torch.bfloat16).train()
    loss, targets = Objective(recipe.model, recipe.train).cross_entropy(model, batch)
    (loss / targets).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", MASKS)
def test_masked_attention_equals_that_on_the_cpu(name: str) -> None:
    """FlexAttention with windows, PyTorch's fused kernels under a bias without."""
    mask, seen = MASKS[name], valid_rows(MASKS[name], 3)
    results = []
    for device in ("cpu", "cuda"):
        moved = {key: getattr(mask, key) for key in ("slopes_N", "lengths_B", "sides_N")}
        moved = {key: None if tensor is None else tensor.to(device) for key, tensor in moved.items()}
        inputs = [drawn(3, HEADS, LENGTH, 16, seed=seed).to(device).requires_grad_() for seed in range(3)]
        q, k, v = inputs
        out = attention(q, k, v, 0.25, Mask(mask.causal, mask.window, **moved)).transpose(1, 2).cpu()[seen]
        out.square().sum().backward()
        results.append([out, *(tensor.grad.cpu() for tensor in inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-2)


def test_packed_documents_equal_those_on_the_cpu() -> None:
    """Compiled FlexAttention equals the CPU's blockwise attention."""
    recipe = load_recipe(RECIPE, ["train.mask_documents=true", "model.num_nextn_predict_layers=1"])
    batch = SyntheticTokens(recipe).global_batch(0)
    seen = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
        init_weights(model, 1)
        model.to(device).train()
        sums = Objective(recipe.model, recipe.train)(model, batch.to(device))
        sum(sums.values()).backward()
        seen.append((float(sums["mtp_1"].detach()), {n: p.grad.cpu() for n, p in model.named_parameters()}))
    assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-4)
    for name, gradient in seen[0][1].items():
        torch.testing.assert_close(seen[1][1][name], gradient, atol=1e-2, rtol=1e-3, msg=name)


def test_a_step_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No host synchronization in forward and backward on one device, in bf16, with every balancing loss.

    Liger's loss waits once, to count its targets: ours stands in for it here.
    """
    monkeypatch.setattr("training.layers.lm_head._liger", lambda: None)
    losses = ["train.sequence_loss=0.1", "train.load_balance_loss=0.1", "train.router_z_loss=0.1"]
    recipe = load_recipe(RECIPE, ["train.precision=bf16", *losses])
    batch = SyntheticTokens(recipe).global_batch(0).to(torch.device("cuda"))
    model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
    init_weights(model, 1)
    model.to("cuda", torch.bfloat16).train()
    objective = Objective(recipe.model, recipe.train)
    sum(objective(model, batch).values()).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(objective(model, batch).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("liger", [True, False])
def test_the_loss_equals_that_of_plain_products(liger: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if liger:
        pytest.importorskip("liger_kernel")
    else:
        monkeypatch.setattr("training.layers.lm_head._liger", lambda: None)
    hidden = torch.randn(100, 64, device="cuda").requires_grad_()
    weight = torch.randn(300, 64, device="cuda").requires_grad_()
    labels = torch.randint(0, 300, (100,), device="cuda")
    labels[::3] = -100
    loss = linear_cross_entropy_sum(hidden, weight, labels)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-3)
    for ours, plain in zip(*(torch.autograd.grad(value, (hidden, weight)) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


def test_the_loss_of_each_token_equals_that_of_plain_products() -> None:
    hidden = torch.randn(2, 50, 64, device="cuda").requires_grad_()
    weight = torch.randn(300, 64, device="cuda").requires_grad_()
    labels = torch.randint(0, 300, (2, 50), device="cuda")
    labels[:, ::3] = -100
    losses = linear_token_cross_entropy(hidden, weight, labels)
    plain = torch.nn.functional.cross_entropy((hidden @ weight.t()).flatten(0, 1), labels.flatten(), reduction="none")
    expected = plain.view(2, 50)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-3)
    gradients = (torch.autograd.grad((v * v.detach()).sum(), (hidden, weight)) for v in (losses, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_decoding_equals_that_on_the_cpu() -> None:
    recipe = load_recipe(RECIPE)
    limits = Limits(20, 100, recipe.vocab_size)
    completions = []
    for device in ("cpu", "cuda"):
        model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
        init_weights(model, 1)
        prompts = [[5, 6, 7], [9], [1, 2, 3, 4, 5]]
        completions.append(generate_batch(model.to(device).eval(), prompts, limits, Sampling(temperature=0), seed=0))
    assert completions[0] == completions[1]
