"""Compares SGD, Adam, AdamW and Muon on the recipe's model, each with the best of a few learning rates."""

from configs import command
from configs.schema import Recipe
from configs.schema.train import OptimizerSection
from training.compare.output import as_json, losses, write_results
from training.compare.trial import Setting, Trial, run_data, trial
from training.data.batch import Data
from training.model_loading import best_device

#: Learning rates to try, relative to the recipe's, which is meant for AdamW. SGD needs higher rates because its steps
#: scale with the gradient.
_RATES = {"sgd": (10.0, 30.0, 100.0), "adam": (0.3, 1.0, 3.0), "adamw": (0.3, 1.0, 3.0), "muon": (0.3, 1.0, 3.0)}
#: Fraction of the steps to train with each candidate rate.
_TRIAL_FRACTION = 0.2


def compare_optimizers(recipe: Recipe, steps: int) -> int:
    """Print each optimizer's final loss and time per step, and draw the losses. Returns the exit status."""
    data = run_data(recipe)
    trials: dict[str, Trial] = {}
    rates: dict[str, float] = {}
    for name in _RATES:
        section = _section(recipe, name)
        rates[name] = best_rate(recipe, data, section, steps)
        trials[name] = trial(recipe, data, Setting(steps, best_device(recipe), section, rates[name]), name)
    rows = [("optimizer", "rate", "final loss", "ms per step")]
    rows += [
        (name, f"{rates[name]:.3g}", f"{result.final:.4f}", f"{1000 * result.step_seconds:.1f}")
        for name, result in trials.items()
    ]
    results = {name: {"rate": rates[name], **as_json(result)} for name, result in trials.items()}
    write_results(recipe, "optimizers", rows, results, losses(f"{recipe.run.name} under each optimizer", trials))
    return command.DONE


def best_rate(recipe: Recipe, data: Data, section: OptimizerSection, steps: int) -> float:
    """Return the learning rate with the lowest loss after a fifth of the steps."""
    setting = Setting(max(1, round(_TRIAL_FRACTION * steps)), best_device(recipe), section)
    final_losses: dict[float, float] = {}
    for factor in _RATES[section.name]:
        rate = factor * recipe.train.learning_rate
        tried = Setting(setting.steps, setting.device, section, rate)
        final = trial(recipe, data, tried, f"{section.name} at {rate:.3g}").final
        final_losses[rate] = final if final == final else float("inf")  # NaN if the training diverged
    return min(final_losses, key=lambda rate: final_losses[rate])


def _section(recipe: Recipe, name: str) -> OptimizerSection:
    """Return the recipe's settings if ``name`` is its optimizer, or default settings otherwise."""
    section = recipe.train.optimizer
    if section.name == name:
        return section
    # Adam and SGD add weight decay to the gradient, where AdamW's weight decay would dominate.
    return OptimizerSection.model_validate({"name": name, **({"weight_decay": 0.0} if name in ("adam", "sgd") else {})})
