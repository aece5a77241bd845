"""Short training runs of a recipe's model in a single process, without DeepSpeed, and always in fp32.

All trials in a comparison start from the same weights and read the same batches. Router biases are not updated.
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

#: Fraction of a trial's steps used for learning-rate warmup.
_WARMUP = 0.1


@dataclass(frozen=True)
class Trial:
    """The results of a short training run.

    Attributes:
        losses: cross-entropy at each step, before the update, in nats per target.
        seconds: duration of each step. The first step includes one-time work.
    """

    losses: list[float]
    seconds: list[float]

    @property
    def final(self) -> float:
        """The final loss: the mean over the last tenth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)

    @property
    def step_seconds(self) -> float:
        """Median time per step, excluding the first step if there are several."""
        return median(self.seconds[1:] or self.seconds)


@dataclass(frozen=True)
class Setting:
    """Settings of a trial.

    Attributes:
        steps: number of optimizer steps.
        device: device to run on.
        optimizer: optimizer section, or None for the recipe's.
        rate: peak learning rate, or None for the recipe's.
        compiled: whether to compile the same regions as ``model.compile``.
    """

    steps: int
    device: torch.device
    optimizer: OptimizerSection | None = None
    rate: float | None = None
    compiled: bool = False


def run_data(recipe: Recipe) -> Data:
    """Load the training data of the recipe's run.

    Raises:
        RequestError: the run has no data.
    """
    return pretraining_data(recipe, RunLayout.of(recipe))


def trial(recipe: Recipe, data: Data, setting: Setting, name: str) -> Trial:
    """Train the recipe's model from its initial weights. ``name`` labels the progress bar."""
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
    results = Trial([], [])
    with bar(setting.steps, "step", name) as progress:
        for step in range(setting.steps):
            for group in optimizer.param_groups:
                group["lr"] = group["rate_scale"] * learning_rate(step, setting.steps, rate, schedule)
            batches = data.micro_batches(step, 0, 1, recipe.micro_batch)
            began = time.perf_counter()
            loss = _step(model, optimizer, objective, batches, train.max_grad_norm, setting.device)
            results.losses.append(loss)
            results.seconds.append(time.perf_counter() - began)
            progress.set_postfix_str(f"loss {loss:.3f}")
            progress.update()
    return results


def _step(
    model: Any, optimizer: Any, objective: Objective, batches: list[Batch], max_grad_norm: float, device: torch.device
) -> float:
    """Run one optimizer step on a global batch, wait for the device, and return the batch's cross-entropy."""
    counts = [objective.counts(batch) for batch in batches]
    totals = {name: max(1, sum(count[name] for count in counts)) for name in objective.weights}
    cross_entropy = torch.zeros((), device=device)
    for batch in batches:
        sums = objective(model, batch.to(device))
        terms = [sums[name] * (weight / totals[name]) for name, weight in objective.weights.items()]
        torch.stack(terms).sum().backward()
        cross_entropy += sums["cross_entropy"].detach().float()
    if max_grad_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return float(cross_entropy) / totals["cross_entropy"]
