"""``python -m training generate``: a prompt's completion, streamed to stdout."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

from configs.schema import Recipe
from tokenizer import chat_template
from tokenizer.base import Tokenizer
from training.inference.answer import encoded
from training.inference.generate import Limits, generate_batch
from training.inference.generate import generate as continue_ids
from training.inference.sampling import Sampling
from training.inference.speculative import Speculation
from training.inference.trace import Step, traced


def complete(
    recipe: Recipe, model: Any, tokenizer: Tokenizer, tell: Callable[[Step], None] | None = None
) -> Iterator[str]:
    """The completion of ``generate.prompt`` as text, in pieces that end at character borders.

    ``tell`` is told how each token came about.

    Raises:
        RequestError: at once, when the prompt cannot be continued.
    """
    section, (prompt_ids, limits) = recipe.generate, asked(recipe, tokenizer)
    sampling = Sampling(section.temperature, section.top_k, section.top_p)
    if section.speculative:
        drawn = _told(Speculation(model, limits), prompt_ids)
    elif tell is not None:
        drawn = traced(model, prompt_ids, limits, sampling, seed=section.seed, tell=tell)
    else:
        drawn = continue_ids(model, prompt_ids, limits, sampling, seed=section.seed)
    if limits.budget(len(prompt_ids)) < section.max_new_tokens:
        drawn = _told_of_its_end(drawn, limits, len(prompt_ids))
    return _texts(drawn, set(limits.stop_ids), tokenizer)


def completions(recipe: Recipe, model: Any, tokenizer: Tokenizer) -> list[str]:
    """``generate.samples`` completions of ``generate.prompt``, drawn together; each is what its seed gives alone.

    Raises:
        RequestError: the prompt cannot be continued.
    """
    section, (prompt_ids, limits) = recipe.generate, asked(recipe, tokenizer)
    sampling = Sampling(section.temperature, section.top_k, section.top_p)
    drawn = generate_batch(model, [prompt_ids] * section.samples, limits, sampling, seed=section.seed)
    return ["".join(_texts(iter(ids), set(limits.stop_ids), tokenizer)) for ids in drawn]


def asked(recipe: Recipe, tokenizer: Tokenizer) -> tuple[list[int], Limits]:
    """The ids of ``generate.prompt``, and what may follow.

    Raises:
        RequestError: the tokenizer has never seen some of the prompt.
    """
    section = recipe.generate
    prompt_ids = encoded(section.prompt, tokenizer, "generate.prompt")
    if section.chat:
        prompt_ids = chat_template.prompt([{"role": "user", "content": section.prompt}], tokenizer)
    return prompt_ids, Limits(
        section.max_new_tokens,
        context_length=recipe.model.max_seq_len or len(prompt_ids) + section.max_new_tokens,
        vocabulary_size=tokenizer.vocab_size,
        stop_ids=set(tokenizer.stop_ids),
        banned_ids=[i for i in range(tokenizer.vocab_size) if tokenizer.is_reserved(i)],
        crop=section.crop,
    )


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
