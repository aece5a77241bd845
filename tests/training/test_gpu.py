"""The layers on a CUDA device give what they give on CPU."""

import pytest
import torch

from configs.load import load_recipe
from tests.training.engine_job import RECIPE, MadeTokens
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.objective import Objective

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_loss_and_gradients_are_those_of_the_cpu(checkpointing: str) -> None:
    recipe = load_recipe(RECIPE)
    batch = MadeTokens(recipe).global_batch(0)
    seen = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
        init_weights(model, 1)
        model.set_checkpointing(checkpointing)
        model.to(device).train()
        loss, targets = Objective(recipe.model, recipe.train).cross_entropy(model, batch.to(device))
        (loss / targets).backward()
        seen.append((loss.item() / targets.item(), {n: p.grad.cpu() for n, p in model.named_parameters()}))
    assert seen[0][0] == pytest.approx(seen[1][0], abs=1e-4)
    for name, gradient in seen[0][1].items():
        torch.testing.assert_close(seen[1][1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_bf16_runs_on_the_grouped_path() -> None:
    recipe = load_recipe(RECIPE)
    batch = MadeTokens(recipe).global_batch(0).to(torch.device("cuda"))
    model = DeepseekForCausalLM(recipe.model, recipe.vocab_size)
    init_weights(model, 1)
    model.to("cuda", torch.bfloat16).train()
    loss, targets = Objective(recipe.model, recipe.train).cross_entropy(model, batch)
    (loss / targets).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
