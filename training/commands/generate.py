"""``python -m training generate``: completes a prompt."""

from artefacts.errors import RequestError
from configs import command
from configs.run_layout import RunLayout
from configs.schema import Recipe
from tokenizer.registry import load_tokenizer
from training.commands import arguments
from training.inference.answer import answer
from training.inference.completion import complete, completions
from training.inference.trace import Step, lines
from training.model_loading import best_device, chat_template_of, load_model, wanted_checkpoint


def generate(recipe: Recipe, trace: bool = False) -> int:
    """Complete the prompt and print the text as it is generated. Returns the exit status.

    The prompt is printed first, except in a chat or with ``only_new``. If ``trace`` is set, a table of the new
    tokens follows.
    """
    layout, section = RunLayout.of(recipe), recipe.generate
    arguments.require_prompt(recipe)
    if trace and section.speculative:
        raise RequestError("generate --trace needs plain generation: remove generate.speculative")
    if trace and section.samples > 1:
        raise RequestError("generate --trace shows one completion: remove generate.samples")
    if recipe.task != "language_modeling" and (trace or section.samples > 1):
        what = "--trace" if trace else "generate.samples"
        raise RequestError(f"{what} is for language models, not for model.family={recipe.family}")
    checkpoint = wanted_checkpoint(recipe, layout)
    model = load_model(recipe, checkpoint, best_device(recipe))
    tokenizer = load_tokenizer(layout.tokenizer)
    template = chat_template_of(checkpoint, tokenizer) if section.chat else None
    if recipe.task != "language_modeling":
        print("\n".join(answer(recipe, layout, model, tokenizer)))
        return command.DONE
    if section.samples > 1:
        prompt = "" if section.chat or section.only_new else section.prompt
        print("\n---\n".join(prompt + text for text in completions(recipe, model, tokenizer, template)))
        return command.DONE
    steps: list[Step] = []
    # Raises RequestError for an invalid request before anything is printed.
    pieces = complete(recipe, model, tokenizer, steps.append if trace else None, template)
    if not (section.chat or section.only_new):
        print(section.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    if trace:
        print("\n".join(["", *lines(steps, tokenizer.label)]))
    return command.DONE
