"""The recipe's model on every kind of device that is here."""

import torch

from configs import command
from configs.schema import Recipe
from training.compare.output import as_json, leave, losses
from training.compare.trial import Setting, run_data, trial


def devices_here() -> list[torch.device]:
    """CPU, then a GPU of each kind that torch sees."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found.append(torch.device("cuda"))
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


def compare_devices(recipe: Recipe, steps: int) -> int:
    """Print time a step and loss on each, and by how much losses differ from CPU's; returns the exit status."""
    data, here = run_data(recipe), devices_here()
    trials = {device.type: trial(recipe, data, Setting(steps, device), device.type) for device in here}
    cpu = trials["cpu"]
    rows = [("device", "ms a step", "times cpu's speed", "final loss", "largest difference")]
    results = {}
    for name, each in trials.items():
        difference = max(abs(one - other) for one, other in zip(each.losses, cpu.losses, strict=True))
        speed = cpu.step_seconds / each.step_seconds
        rows.append((name, f"{1000 * each.step_seconds:.1f}", f"{speed:.2f}", f"{each.final:.4f}", f"{difference:.2g}"))
        results[name] = {**as_json(each), "largest_difference": difference}
    leave(recipe, "devices", rows, results, losses("By device", trials))
    if len(here) == 1:
        print("there is no other device than cpu here: torch sees neither cuda nor mps")
    return command.DONE
