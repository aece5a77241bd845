"""Learning-rate schedules as pure functions of the step."""

import math

from configs.schema.train import ScheduleSection


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleSection) -> float:
    """Return the learning rate for optimizer step ``step`` (counted from 0) out of ``steps``.

    All schedules start with a linear warmup to ``peak``. ``cosine`` then follows half a cosine down to
    ``final_fraction`` of the peak. ``wsd`` (warmup-stable-decay, arXiv 2404.06395) stays at the peak and then decays
    linearly to ``final_fraction`` of the peak over the last ``decay_fraction`` of the steps. ``steps`` (DeepSeek-V2)
    multiplies the rate by ``factor`` at each point in ``at``. The points are fractions of all steps.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "steps":
        return peak * schedule.factor ** sum(step >= share * steps for share in schedule.at)
    final = peak * schedule.final_fraction
    if schedule.kind == "cosine":
        progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
        return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    decay_steps = max(1, round(steps * schedule.decay_fraction))
    remaining = steps - step
    return peak if remaining > decay_steps else final + (peak - final) * remaining / decay_steps
