"""The report's section on a preference stage, and on a stage without preferences."""

from typing import Any

import pytest

from artefacts.metrics_log import Metrics
from training.report.preference_section import preference_figures, preference_table, rewards_figure
from training.report.run_files import RunFiles
from training.report.training_sections import finetuning_section

REWARDS = {"rewards/chosen": 0.5, "rewards/rejected": -0.5, "rewards/margin": 1.0, "rewards/accuracy": 0.9}
FACTS = {"loss": 0.41, "chosen": 0.52, "rejected": -0.53, "margin": 1.05, "accuracy": 0.925}


def metrics(**more: float) -> Metrics:
    """Ten steps, and a validation after the last one."""
    speed = {"tokens_per_second": 1e4, "model_flops_per_second": 1e9, "memory_bytes": 1e9}
    steps = [
        {"kind": "train", "step": step, "loss": 0.7 / step, "learning_rate": 1e-3, "grad_norm": 1.0, **speed, **more}
        for step in range(1, 11)
    ]
    return {"train": steps, "validation": [{"kind": "validation", "step": 10, "loss": 0.4, **more}]}


def section(of_stage: Metrics, facts: dict[str, Any]) -> str:
    run = RunFiles(
        name="run",
        data={},
        pretrain=None,
        finetune={},
        pretrain_metrics={},
        finetune_metrics={"dpo": of_stage},
        evaluation={"finetune": {"dpo": facts}},
        recipe="",
        training_samples={},
    )
    return finetuning_section(run, "dpo")


def test_a_preference_stage_shows_its_rewards_and_its_held_out_pairs() -> None:
    losses = {"held_out_loss_before": 4.1, "held_out_loss_after": 3.9, "examples": 74}
    html = section(metrics(**REWARDS), {**losses, "preferences": FACTS})
    for text in ("loss on 74 chosen answers", "92.5%", "1.050", "implicit reward", "rewards of fine-tuning dpo"):
        assert text in html, text
    rewards, accuracy = rewards_figure(metrics(**REWARDS)).axes
    assert [line.get_ydata()[-1] for line in rewards.lines] == pytest.approx([0.5, 0.5, -0.5, -0.5, 1.0, 1.0])
    assert [line.get_ydata()[-1] for line in accuracy.lines] == pytest.approx([0.9, 0.9])


def test_a_stage_without_preferences_or_without_results_shows_none() -> None:
    assert preference_figures(metrics(), "sft") == [] and preference_table({}) == ""
