"""The recipe's model under SGD, Adam, AdamW and Muon, each at the best of a few learning rates."""

from configs import command
from configs.schema import Recipe
from configs.schema.train import OptimizerSection
from training.compare.output import as_json, leave, losses
from training.compare.trial import Setting, Trial, run_data, trial
from training.data.batch import Data
from training.model_loading import best_device

#: Learning rates that are tried, over the recipe's, which is one for AdamW; SGD's steps have the gradient's size.
_RATES = {"sgd": (10.0, 30.0, 100.0), "adam": (0.3, 1.0, 3.0), "adamw": (0.3, 1.0, 3.0), "muon": (0.3, 1.0, 3.0)}
#: Share of the steps that each rate is tried for.
_TRIED = 0.2


def compare_optimizers(recipe: Recipe, steps: int) -> int:
    """Print final loss and seconds a step of each, and draw their losses; returns the exit status."""
    data = run_data(recipe)
    trials: dict[str, Trial] = {}
    rates: dict[str, float] = {}
    for name in _RATES:
        section = _section(recipe, name)
        rates[name] = best_rate(recipe, data, section, steps)
        trials[name] = trial(recipe, data, Setting(steps, best_device(recipe), section, rates[name]), name)
    rows = [("optimiser", "rate", "final loss", "ms a step")]
    rows += [
        (name, f"{rates[name]:.3g}", f"{each.final:.4f}", f"{1000 * each.step_seconds:.1f}")
        for name, each in trials.items()
    ]
    results = {name: {"rate": rates[name], **as_json(each)} for name, each in trials.items()}
    leave(recipe, "optimizers", rows, results, losses(f"{recipe.run.name} under each optimiser", trials))
    return command.DONE


def best_rate(recipe: Recipe, data: Data, section: OptimizerSection, steps: int) -> float:
    """Of the rates to try, the one whose loss is lowest after a fifth of the steps."""
    setting = Setting(max(1, round(_TRIED * steps)), best_device(recipe), section)
    found: dict[float, float] = {}
    for factor in _RATES[section.name]:
        rate = factor * recipe.train.learning_rate
        tried = Setting(setting.steps, setting.device, section, rate)
        final = trial(recipe, data, tried, f"{section.name} at {rate:.3g}").final
        found[rate] = final if final == final else float("inf")  # one that blew up is no number
    return min(found, key=lambda rate: found[rate])


def _section(recipe: Recipe, name: str) -> OptimizerSection:
    """The recipe's own settings for its optimiser, the usual ones for the others."""
    own = recipe.train.optimizer
    if own.name == name:
        return own
    # Adam and SGD add decay to the gradient, where as much as AdamW's would drown it.
    return OptimizerSection.model_validate({"name": name, **({"weight_decay": 0.0} if name in ("adam", "sgd") else {})})
