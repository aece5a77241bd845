"""A short training of a recipe's model in this process alone, without DeepSpeed, in fp32 whatever the recipe says.

Every trial of a comparison begins from the same weights and reads the same batches. Routers' biases stand still.
"""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from artefacts.progress import bar
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.train import OptimizerSection, ScheduleSection
from training.data.batch import Batch, Data
from training.data.build import pretraining_data
from training.model_loading import first_weights
from training.models.registry import build_model
from training.objective import Objective
from training.optim.build import build_optimizer
from training.optim.schedules import learning_rate

#: Share of a trial's steps in which the learning rate rises.
_WARMUP = 0.1


@dataclass(frozen=True)
class Trial:
    """What a short training did.

    Attributes:
        losses: cross-entropy in nats a target, of each step before its update.
        seconds: of each step; the first one's include what is done once.
    """

    losses: list[float]
    seconds: list[float]

    @property
    def final(self) -> float:
        """The loss at the end: the mean of the last tenth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)

    @property
    def step_seconds(self) -> float:
        """Of a step, the first left out where there are more: their median."""
        return median(self.seconds[1:] or self.seconds)


@dataclass(frozen=True)
class Setting:
    """How a trial is run.

    Attributes:
        steps: optimiser steps.
        device: where.
        optimizer: which; None: the recipe's.
        rate: peak of the learning rate; None: the recipe's.
        compiled: with the regions that ``model.compile`` compiles.
    """

    steps: int
    device: torch.device
    optimizer: OptimizerSection | None = None
    rate: float | None = None
    compiled: bool = False


def run_data(recipe: Recipe) -> Data:
    """What the recipe's run learns from.

    Raises:
        RequestError: it is not there.
    """
    return pretraining_data(recipe, RunLayout.of(recipe))


def trial(recipe: Recipe, data: Data, setting: Setting, name: str) -> Trial:
    """Train the recipe's model, drawn anew from its seed, as a setting says; ``name`` stands at the progress bar."""
    train = recipe.train
    model = build_model(recipe.model, recipe.vocab_size)
    first_weights(recipe, model)
    model = model.to(setting.device).train()
    model.set_activation_checkpointing(train.activation_checkpointing)
    if setting.compiled:
        model.compile_regions()
    rate = setting.rate or train.learning_rate
    chosen = setting.optimizer or train.optimizer
    optimizer = build_optimizer(model, chosen, rate, rate_scales=recipe.model.rate_scales)
    schedule = ScheduleSection(warmup_steps=int(_WARMUP * setting.steps), final_fraction=train.schedule.final_fraction)
    objective = Objective(recipe.model, train)
    torch.manual_seed(recipe.run.seed)
    found = Trial([], [])
    with bar(setting.steps, "step", name) as progress:
        for step in range(setting.steps):
            for group in optimizer.param_groups:
                group["lr"] = group["rate_scale"] * learning_rate(step, setting.steps, rate, schedule)
            batches = data.micro_batches(step, 0, 1, recipe.micro_batch)
            began = time.perf_counter()
            loss = _step(model, optimizer, objective, batches, train.max_grad_norm, setting.device)
            found.losses.append(loss)
            found.seconds.append(time.perf_counter() - began)
            progress.set_postfix_str(f"loss {loss:.3f}")
            progress.update()
    return found


def _step(
    model: Any, optimizer: Any, objective: Objective, batches: list[Batch], clip: float, device: torch.device
) -> float:
    """One optimiser step over a global batch; its cross-entropy, which the device has finished with."""
    counts = [objective.counts(batch) for batch in batches]
    totals = {name: max(1, sum(each[name] for each in counts)) for name in objective.weights}
    cross_entropy = torch.zeros((), device=device)
    for batch in batches:
        sums = objective(model, batch.to(device))
        terms = [sums[name] * (weight / totals[name]) for name, weight in objective.weights.items()]
        torch.stack(terms).sum().backward()
        cross_entropy += sums["cross_entropy"].detach().float()
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return float(cross_entropy) / totals["cross_entropy"]
