"""``python -m training generate``: a prompt's completion, streamed to stdout."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    # Refuses what it must before anything is printed.
    pieces = complete(recipe, model, Tokenizer.load(layout.tokenizer))
    if not section.chat:
        print(section.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return command.DONE


def complete(recipe: Recipe, model: Any, tokenizer: Tokenizer) -> Iterator[str]:
    """The completion of ``generate.prompt`` as text, in pieces that end at character borders.

    Raises:
        RequestError: at once, when the prompt cannot be continued.
    """
    section = recipe.generate
    if section.chat:
        prompt_ids = chat.prompt([{"role": "user", "content": section.prompt}], tokenizer)
    else:
        prompt_ids = tokenizer.encode(section.prompt)
    if tokenizer.unknown_id in prompt_ids:
        strange = sorted({c for c in section.prompt if tokenizer.unknown_id in tokenizer.encode(c)})
        raise RequestError(
            f"generate.prompt: the tokenizer has never seen {', '.join(map(repr, strange))}: leave that out"
        )
    stops = set(tokenizer.stop_ids)
    limits = Limits(
        section.max_new_tokens,
        context_length=recipe.model.longest or len(prompt_ids) + section.max_new_tokens,
        vocabulary_size=tokenizer.vocab_size,
        stop_ids=stops,
        banned_ids=[i for i in range(tokenizer.vocab_size) if tokenizer.is_reserved(i)],
    )
    if section.speculative:
        drawn = _told(Speculation(model, limits), prompt_ids)
    else:
        sampling = Sampling(section.temperature, section.top_k, section.top_p)
        drawn = continue_ids(model, prompt_ids, limits, sampling, seed=section.seed)
    if limits.budget(len(prompt_ids)) < section.max_new_tokens:
        drawn = _told_of_its_end(drawn, limits, len(prompt_ids))
    return _texts(drawn, stops, tokenizer)


def _told(drafting: Speculation, prompt_ids: list[int]) -> Iterator[int]:
    """What drafting gives; at its end stderr says how many drafts were right."""
    drawn = drafting.generate(prompt_ids)

    def tell() -> Iterator[int]:
        try:
            yield from drawn
        finally:  # whoever reads stops at a stop token
            print(f"\n{drafting.accepted} of {drafting.drafted} drafts were right", file=sys.stderr)

    return tell()


def _told_of_its_end(drawn: Iterator[int], limits: Limits, prompt: int) -> Iterator[int]:
    """The same; where the context ends it, stderr says so."""
    left = limits.budget(prompt)
    for token in drawn:
        left -= 1
        yield token
    if not left:
        print(
            f"\nended where the context does: model.max_position_embeddings is {limits.context_length}", file=sys.stderr
        )


def _texts(drawn: Iterator[int], stops: set[int], tokenizer: Tokenizer) -> Iterator[str]:
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
