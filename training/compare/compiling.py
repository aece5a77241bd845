"""Compares the recipe's model in eager and compiled mode.

The compiled regions are the same as with ``model.compile``.
"""

import torch

from configs import command
from configs.schema import Recipe
from training.compare.output import as_json, losses, write_results
from training.compare.trial import Setting, run_data, trial
from training.model_loading import best_device


def compare_compiled(recipe: Recipe, steps: int) -> int:
    """Print the time per step and the largest loss difference, and draw the losses. Returns the exit status."""
    data = run_data(recipe)
    eager = trial(recipe, data, Setting(steps, best_device(recipe)), "eager")
    torch.compiler.reset()
    compiled = trial(recipe, data, Setting(steps, best_device(recipe), compiled=True), "compiled")
    trials = {"eager": eager, "compiled": compiled}
    difference = max(abs(one - other) for one, other in zip(eager.losses, compiled.losses, strict=True))
    rows = [("model", "first step, s", "ms per step", "final loss")]
    rows += [
        (name, f"{trial.seconds[0]:.2f}", f"{1000 * trial.step_seconds:.1f}", f"{trial.final:.4f}")
        for name, trial in trials.items()
    ]
    results = {name: as_json(trial) for name, trial in trials.items()} | {"largest_difference": difference}
    write_results(recipe, "compile", rows, results, losses("Eager and compiled", trials))
    print(
        f"compiled takes {compiled.step_seconds / eager.step_seconds:.2f} of the time per step; "
        f"losses differ by at most {difference:.2g}"
    )
    return command.DONE
