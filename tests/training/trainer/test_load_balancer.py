"""Every balancing method evens out a router that starts with two favorite experts; without one they stay."""

from collections.abc import Iterator

import pytest
import torch

from configs.schema.models.deepseek import DeepseekSection
from configs.schema.train import TrainSection
from tests.support.training.shapes import small
from training.data.batch import Batch
from training.distributed.join import join
from training.distributed.ranks import destroy_process_group
from training.models.deepseek import DeepseekForCausalLM, init_weights
from training.objective import Objective
from training.optim.build import build_optimizer
from training.trainer.load_balancer import Balancer

STEPS, FAVORITES, VOCAB = 200, 2, 1000
SOFTMAX = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}
METHODS = {
    "bias": ({}, {"router_bias_update_rate": 0.02}),
    "sequence-wise loss": (SOFTMAX, {"sequence_loss": 0.5}),
    "load-balance loss": (SOFTMAX, {"load_balance_loss": 0.5}),
    "classic gate with load-balance loss": ({**SOFTMAX, "norm_topk_prob": True}, {"load_balance_loss": 0.5}),
    "sequence-wise loss, sigmoid": ({}, {"sequence_loss": 0.5, "router_bias_update_rate": 0.0}),
}


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    join()
    yield
    destroy_process_group()


def worst_loads(model: DeepseekSection, **train: float) -> list[float]:
    """Return the max/mean expert load at every step of a run that starts with all tokens at two experts."""
    section = TrainSection(
        context_length=32,
        global_batch_tokens=1024,
        steps=STEPS,
        learning_rate=4e-4,
        max_grad_norm=0,
        precision="fp32",
        **train,
    )
    network = DeepseekForCausalLM(model, VOCAB)
    init_weights(network, 0)
    with torch.no_grad():
        # A direction that all tokens share, and two experts that respond to it.
        network.model.embed_tokens.weight[:, 0] += 1.4
        (router_layer,) = (layer for layer in network.model.blocks if hasattr(layer, "router"))
        router_layer.mlp.gate.weight[:FAVORITES, 0] += 2.0  # type: ignore[union-attr, index]
    optimizer = build_optimizer(network, section.optimizer, section.learning_rate)
    objective, balancer = Objective(model, section), Balancer(network, section.router_bias_update_rate)
    generator = torch.Generator().manual_seed(5)
    worst = []
    for _ in range(STEPS):
        ids = torch.randint(0, VOCAB, (32, 32), generator=generator)
        # Labels that can be learned: otherwise all hidden states become similar, and go to one expert together.
        batch = Batch(ids, (ids * 7 + 3) % VOCAB)
        sums, counts = objective(network, batch), objective.counts(batch)
        loss = sum(objective.weights[name] * sums[name] / counts[name] for name in objective.weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        (load,) = balancer.update()
        worst.append(load.max_over_mean)
    return worst


@pytest.mark.parametrize("method", METHODS)
def test_balancing_evens_the_load_within_200_steps(method: str) -> None:
    model, train = METHODS[method]
    worst = worst_loads(small(routed_scaling_factor=1.0, initializer_range=0.2, **model), **train)
    assert worst[0] > 3.5, "all tokens begin at the two favorites"
    assert sum(worst[-20:]) / 20 < 1.3


@pytest.mark.parametrize("model", [{}, SOFTMAX])
def test_without_balancing_the_favorites_stay(model: dict[str, object]) -> None:
    worst = worst_loads(small(routed_scaling_factor=1.0, initializer_range=0.2, **model), router_bias_update_rate=0.0)
    assert min(worst) > 2
