"""``python -m training evaluate temperature``: the same prompt at several temperatures, side by side."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from artefacts import atomic
from artefacts.errors import RequestError
from configs import command
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer.base import Tokenizer
from tokenizer.registry import load_tokenizer
from training.inference.completion import asked
from training.inference.generate import CausalLM, Limits
from training.inference.sampling import Sampling
from training.inference.trace import Step, traced
from training.model_loading import best_device, load_model, wanted_checkpoint

TEMPERATURES = (0.1, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class AtTemperature:
    """A completion and what it was drawn from.

    Attributes:
        temperature: of the drawing.
        tokens: that were drawn, the one that ends it among them.
        log_probability: mean of the tokens' under the model itself, at temperature 1, in nats.
        entropy: mean of the distributions that were drawn from, in nats.
        distinct: different tokens over all, the one that ends it left out.
        completion: as text.
    """

    temperature: float
    tokens: int
    log_probability: float
    entropy: float
    distinct: float
    completion: str


def evaluate_temperature(recipe: Recipe) -> int:
    """Print the comparison and write ``runs/NAME/temperatures.json``; returns the exit status.

    Raises:
        RequestError: the model goes on from no prompt, or there is none.
    """
    layout, section, model_section = RunLayout.of(recipe), recipe.generate, recipe.model
    if model_section.task != "language_modeling":
        family: Any = model_section
        raise RequestError(f"model.family={family.family} goes on from no prompt: there is nothing to draw")
    if not section.prompt:
        raise RequestError("generate.prompt is empty: pass one, such as generate.prompt='Return the'")
    checkpoint = wanted_checkpoint(recipe, layout)
    model = load_model(recipe, checkpoint, best_device(recipe))
    tokenizer = load_tokenizer(layout.tokenizer)
    prompt_ids, limits = asked(recipe, tokenizer)
    sampling = Sampling(1.0, section.top_k, section.top_p)
    found = [
        at_temperature(model, tokenizer, prompt_ids, limits, replace(sampling, temperature=each), section.seed)
        for each in TEMPERATURES
    ]
    about = {"checkpoint": str(checkpoint), "prompt": section.prompt, "seed": section.seed}
    about |= {"top_k": section.top_k, "top_p": section.top_p}
    atomic.write_json(layout.temperatures, {**about, "temperatures": [asdict(each) for each in found]})
    print("\n".join(_lines(section.prompt, found)))
    print(layout.temperatures)
    return command.DONE


def at_temperature(
    model: CausalLM, tokenizer: Tokenizer, prompt_ids: list[int], limits: Limits, sampling: Sampling, seed: int
) -> AtTemperature:
    """One completion, and its numbers."""
    steps: list[Step] = []
    ids = list(traced(model, prompt_ids, limits, sampling, seed=seed, tell=steps.append))
    said = ids[:-1] if ids[-1] in limits.stop_ids else ids
    return AtTemperature(
        temperature=sampling.temperature,
        tokens=len(ids),
        log_probability=sum(step.log_probability for step in steps) / len(steps),
        entropy=sum(step.entropy for step in steps) / len(steps),
        distinct=len(set(said)) / len(said) if said else 0.0,
        completion=tokenizer.decode(said),
    )


def _lines(prompt: str, found: list[AtTemperature]) -> list[str]:
    rows = [f"{prompt!r} goes on, with the same seed:", ""]
    rows.append(f"{'temperature':>11}{'tokens':>8}{'log p':>9}{'entropy':>9}{'distinct':>10}  completion")
    rows += [
        f"{each.temperature:>11.1f}{each.tokens:>8}{each.log_probability:>9.3f}{each.entropy:>9.3f}"
        f"{each.distinct:>10.1%}  {each.completion!r}"
        for each in found
    ]
    return [*rows, "", "log p: of a token under the model, mean in nats; entropy: of what is drawn from, likewise"]
