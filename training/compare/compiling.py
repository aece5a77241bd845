"""The recipe's model as it is and with the regions compiled that ``model.compile`` compiles."""

import torch

from configs import command
from configs.schema import Recipe
from training.compare.output import as_json, leave, losses
from training.compare.trial import Setting, run_data, trial
from training.model_loading import best_device


def compare_compiled(recipe: Recipe, steps: int) -> int:
    """Print time a step and by how much the losses differ at most, and draw them; returns the exit status."""
    data = run_data(recipe)
    eager = trial(recipe, data, Setting(steps, best_device(recipe)), "eager")
    torch.compiler.reset()
    compiled = trial(recipe, data, Setting(steps, best_device(recipe), compiled=True), "compiled")
    trials = {"eager": eager, "compiled": compiled}
    difference = max(abs(one - other) for one, other in zip(eager.losses, compiled.losses, strict=True))
    rows = [("model", "first step, s", "ms a step", "final loss")]
    rows += [
        (name, f"{each.seconds[0]:.2f}", f"{1000 * each.step_seconds:.1f}", f"{each.final:.4f}")
        for name, each in trials.items()
    ]
    results = {name: as_json(each) for name, each in trials.items()} | {"largest_difference": difference}
    leave(recipe, "compile", rows, results, losses("Eager and compiled", trials))
    print(
        f"compiled takes {compiled.step_seconds / eager.step_seconds:.2f} of the time a step; "
        f"losses differ by {difference:.2g} at most"
    )
    return command.DONE
