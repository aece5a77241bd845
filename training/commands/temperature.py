"""``python -m training evaluate temperature``: completes the same prompt at several temperatures."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from artefacts import atomic
from artefacts.errors import RequestError
from configs import command
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer.base import Tokenizer
from tokenizer.registry import load_tokenizer
from training.commands import arguments
from training.inference.completion import prompt_and_limits
from training.inference.generate import Limits
from training.inference.sampling import Sampling
from training.inference.trace import Step, traced
from training.model_loading import best_device, chat_template_of, load_model, wanted_checkpoint
from training.models.causal_lm import CausalLM

TEMPERATURES = (0.1, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class AtTemperature:
    """A completion and its statistics.

    Attributes:
        temperature: the sampling temperature.
        tokens: number of sampled tokens, including the stop token.
        log_probability: mean log-probability of the tokens under the model at temperature 1, in nats.
        entropy: mean entropy of the distributions that tokens were sampled from, in nats.
        distinct: number of distinct tokens divided by the number of tokens, excluding the stop token.
        completion: the completion as text.
    """

    temperature: float
    tokens: int
    log_probability: float
    entropy: float
    distinct: float
    completion: str


def evaluate_temperature(recipe: Recipe) -> int:
    """Print the comparison and write ``runs/NAME/temperatures.json``. Returns the exit status.

    Raises:
        RequestError: the model does not complete prompts, or there is no prompt.
    """
    layout, section, model_section = RunLayout.of(recipe), recipe.generate, recipe.model
    if model_section.task != "language_modeling":
        family: Any = model_section
        raise RequestError(f"model.family={family.family} does not complete prompts: there is nothing to sample")
    arguments.require_prompt(recipe)
    checkpoint = wanted_checkpoint(recipe, layout)
    model = load_model(recipe, checkpoint, best_device(recipe))
    tokenizer = load_tokenizer(layout.tokenizer)
    template = chat_template_of(checkpoint, tokenizer) if section.chat else None
    prompt_ids, limits = prompt_and_limits(recipe, tokenizer, template)
    sampling = Sampling(1.0, section.top_k, section.top_p)
    completions = [
        at_temperature(model, tokenizer, prompt_ids, limits, replace(sampling, temperature=temperature), section.seed)
        for temperature in TEMPERATURES
    ]
    about = {"checkpoint": str(checkpoint), "prompt": section.prompt, "seed": section.seed}
    about |= {"top_k": section.top_k, "top_p": section.top_p}
    atomic.write_json(
        layout.temperatures, {**about, "temperatures": [asdict(completion) for completion in completions]}
    )
    print("\n".join(_lines(section.prompt, completions)))
    print(layout.temperatures)
    return command.DONE


def at_temperature(
    model: CausalLM, tokenizer: Tokenizer, prompt_ids: list[int], limits: Limits, sampling: Sampling, seed: int
) -> AtTemperature:
    """Complete the prompt once, and return the completion with its statistics."""
    steps: list[Step] = []
    ids = list(traced(model, prompt_ids, limits, sampling, seed=seed, on_step=steps.append))
    text_ids = ids[:-1] if ids[-1] in limits.stop_ids else ids
    return AtTemperature(
        temperature=sampling.temperature,
        tokens=len(ids),
        log_probability=sum(step.log_probability for step in steps) / len(steps),
        entropy=sum(step.entropy for step in steps) / len(steps),
        distinct=len(set(text_ids)) / len(text_ids) if text_ids else 0.0,
        completion=tokenizer.decode(text_ids),
    )


def _lines(prompt: str, completions: list[AtTemperature]) -> list[str]:
    rows = [f"completions of {prompt!r} with the same seed:", ""]
    rows.append(f"{'temperature':>11}{'tokens':>8}{'log p':>9}{'entropy':>9}{'distinct':>10}  completion")
    rows += [
        f"{row.temperature:>11.1f}{row.tokens:>8}{row.log_probability:>9.3f}{row.entropy:>9.3f}"
        f"{row.distinct:>10.1%}  {row.completion!r}"
        for row in completions
    ]
    return [
        *rows,
        "",
        "log p: mean log-probability per token under the model; entropy: mean over sampled distributions; in nats",
    ]
