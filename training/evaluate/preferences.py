"""Measures a preference stage on its held-out pairs, compared with the model that it started from."""

from collections.abc import Callable
from typing import Any

import torch

from artefacts.progress import bar
from configs.run_layout import RunLayout
from configs.schema import Recipe
from configs.schema.finetune import FinetuneSection
from tokenizer.registry import load_tokenizer
from tokenizer.special_tokens import IGNORED
from training.data.preferences import PreferenceExamples
from training.objective import Objective
from training.preference.loss import REWARDS, Pairs, preference_losses, reward_sums
from training.preference.objective import log_probabilities


def evaluate_preferences(
    recipe: Recipe,
    layout: RunLayout,
    section: FinetuneSection,
    load_start: Callable[[], Any],
    load_tuned: Callable[[], Any],
    device: torch.device,
) -> dict[str, Any]:
    """Return a stage's entry in ``evaluation.json``, except for what every stage has.

    Both models are measured here, in the same way, rather than read from the stage's reference.

    Args:
        recipe: the run's recipe.
        layout: the run's layout.
        section: the stage.
        load_start: loads the model as it was before the stage's first step, onto the device.
        load_tuned: loads the stage's own model onto the device.
        device: the device of the models.

    Returns:
        ``examples`` (pairs), the ``held_out_loss_before`` and ``held_out_loss_after`` of the chosen answers in nats per
        token, and ``preferences``: the loss per pair, and the means of the implicit rewards.
    """
    assert section.preference is not None
    examples = PreferenceExamples(layout.examples_of(section.name), "held-out", load_tokenizer(layout.tokenizer).pad_id)
    tokens, before = _measure(recipe, examples, load_start(), device, f"held-out pairs, {section.name}, before")
    _, after = _measure(recipe, examples, load_tuned(), device, f"held-out pairs, {section.name}, after")
    pairs = Pairs(*(after - before).unbind(1), *tokens.unbind(1))
    count = len(examples)
    rewards = reward_sums(pairs, section.preference.beta)
    losses = {
        f"held_out_loss_{when}": float(-logs[:, 0].double().sum() / tokens[:, 0].sum())
        for when, logs in (("before", before), ("after", after))
    }
    return {
        "examples": count,
        **losses,
        "preferences": {
            "loss": float(preference_losses(pairs, section.preference).mean()),
            **{name.removeprefix("rewards/"): float(rewards[name]) / count for name in REWARDS},
        },
    }


@torch.no_grad()
def _measure(
    recipe: Recipe, examples: PreferenceExamples, model: Any, device: torch.device, label: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target tokens and the log-probabilities of all answers, both [n, 2] (chosen, rejected)."""
    model.eval()
    # Each answer is a separate sample, so there are no document boundaries to mask.
    objective = Objective(recipe.model, recipe.train.model_copy(update={"mask_documents": False}))
    tokens, logs = [], []
    batches = examples.in_order(max(1, recipe.evaluate.batch // 2))
    with bar(len(batches), "batch", label) as progress:
        for batch in batches:
            tokens.append((batch.labels != IGNORED).sum(1).view(2, -1).T)
            logs.append(log_probabilities(objective, model, batch.to(device)).view(2, -1).T.cpu())
            progress.update()
    return torch.cat(tokens), torch.cat(logs)
