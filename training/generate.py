"""``python -m training generate``: a prompt's completion, streamed to stdout."""

from collections.abc import Iterator
from pathlib import Path

from artefacts.layout import RunLayout
from artefacts.training_run import require_same_tokens
from configs import command
from configs.errors import RequestError
from configs.schema import Recipe
from tokenizer import chat
from tokenizer.load import Tokenizer
from training.inference.generate import Limits
from training.inference.generate import generate as continue_ids
from training.inference.sampling import Sampling
from training.inference.speculative import Speculation
from training.models.deepseek import DeepseekForCausalLM
from training.trained import best_device, load_model, newest_checkpoint


def generate(recipe: Recipe) -> int:
    """Print the prompt (but a chat's) and what the model makes of it; returns the exit status."""
    layout, section = RunLayout.of(recipe), recipe.generate
    if not section.prompt:
        raise RequestError("generate.prompt is empty: pass one, such as generate.prompt='Return the'")
    if not section.weights:
        require_same_tokens(layout)
    checkpoint = Path(section.weights) if section.weights else newest_checkpoint(layout)
    model = load_model(recipe, checkpoint, best_device())
    if not section.chat:
        print(section.prompt, end="", flush=True)
    for piece in complete(recipe, model, Tokenizer.load(layout.tokenizer)):
        print(piece, end="", flush=True)
    print()
    return command.DONE


def complete(recipe: Recipe, model: DeepseekForCausalLM, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield the completion of ``generate.prompt`` as text, in pieces that end at character borders."""
    section = recipe.generate
    if section.chat:
        prompt_ids = chat.prompt([{"role": "user", "content": section.prompt}], tokenizer)
    else:
        prompt_ids = tokenizer.encode(section.prompt)
    stops = set(tokenizer.stop_ids)
    limits = Limits(
        section.max_new_tokens,
        context_length=recipe.model.max_position_embeddings,
        vocabulary_size=tokenizer.vocab_size,
        stop_ids=stops,
        banned_ids=[i for i in range(tokenizer.vocab_size) if tokenizer.is_reserved(i)],
    )
    if section.speculative:
        drawn = Speculation(model, limits).generate(prompt_ids)
    else:
        sampling = Sampling(section.temperature, section.top_k, section.top_p)
        drawn = continue_ids(model, prompt_ids, limits, sampling, seed=section.seed)
    ids: list[int] = []
    said = ""
    for token in drawn:
        if token in stops:
            break
        ids.append(token)
        text = tokenizer.decode(ids)
        # A character of several byte pieces decodes to U+FFFD until its last piece is there.
        if not text.endswith("\ufffd"):
            yield text[len(said) :]
            said = text
    yield tokenizer.decode(ids)[len(said) :]
