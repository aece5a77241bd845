"""Compares training of the recipe's model on every kind of device in this machine."""

import torch

from configs import command
from configs.schema import Recipe
from training.compare.output import as_json, losses, write_results
from training.compare.trial import Setting, run_data, trial


def available_devices() -> list[torch.device]:
    """Return the CPU and each kind of GPU that torch supports on this machine."""
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    if torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    return devices


def compare_devices(recipe: Recipe, steps: int) -> int:
    """Print each device's time per step, loss, and largest difference from the CPU losses. Returns the exit status."""
    data, devices = run_data(recipe), available_devices()
    trials = {device.type: trial(recipe, data, Setting(steps, device), device.type) for device in devices}
    cpu = trials["cpu"]
    rows = [("device", "ms per step", "speedup over cpu", "final loss", "largest difference")]
    results = {}
    for name, trial_of_device in trials.items():
        difference = max(abs(one - other) for one, other in zip(trial_of_device.losses, cpu.losses, strict=True))
        speed = cpu.step_seconds / trial_of_device.step_seconds
        rows.append(
            (
                name,
                f"{1000 * trial_of_device.step_seconds:.1f}",
                f"{speed:.2f}",
                f"{trial_of_device.final:.4f}",
                f"{difference:.2g}",
            )
        )
        results[name] = {**as_json(trial_of_device), "largest_difference": difference}
    write_results(recipe, "devices", rows, results, losses("By device", trials))
    if len(devices) == 1:
        print("cpu is the only device here: torch finds neither cuda nor mps")
    return command.DONE
