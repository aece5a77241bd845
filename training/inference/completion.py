"""Text completions of ``generate.prompt``: a single streamed completion, or several at once."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

from configs.schema import Recipe
from tokenizer import chat_template
from tokenizer.base import Tokenizer
from tokenizer.chat_template import ChatTemplate
from training.inference.answer import encode_prompt
from training.inference.generate import Limits, generate_batch
from training.inference.generate import generate as continue_ids
from training.inference.sampling import Sampling
from training.inference.speculative import Speculation
from training.inference.trace import Step, traced


def complete(
    recipe: Recipe,
    model: Any,
    tokenizer: Tokenizer,
    on_step: Callable[[Step], None] | None = None,
    template: ChatTemplate | None = None,
) -> Iterator[str]:
    """Stream the completion of ``generate.prompt`` as text, in pieces that end at character boundaries.

    Args:
        recipe: the recipe.
        model: the model.
        tokenizer: its tokenizer.
        on_step: called for each sampled token, with the probabilities it was sampled from.
        template: the chat template that the model was fine-tuned with. None for the default.

    Raises:
        RequestError: the prompt cannot be continued. Raised by the call itself, not on the first iteration.
    """
    section, (prompt_ids, limits) = recipe.generate, prompt_and_limits(recipe, tokenizer, template)
    sampling = Sampling(section.temperature, section.top_k, section.top_p)
    if section.speculative:
        sampled = _reporting_drafts(Speculation(model, limits), prompt_ids)
    elif on_step is not None:
        sampled = traced(model, prompt_ids, limits, sampling, seed=section.seed, on_step=on_step)
    else:
        sampled = continue_ids(model, prompt_ids, limits, sampling, seed=section.seed)
    if limits.budget(len(prompt_ids)) < section.max_new_tokens:
        sampled = _reporting_full_context(sampled, limits, len(prompt_ids))
    return _texts(sampled, set(limits.stop_ids), tokenizer)


def completions(recipe: Recipe, model: Any, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> list[str]:
    """Return ``generate.samples`` completions of ``generate.prompt``. ``template`` is as in ``complete``.

    They are generated as one batch, but each is identical to a completion generated alone with its own seed.

    Raises:
        RequestError: the prompt cannot be continued.
    """
    section, (prompt_ids, limits) = recipe.generate, prompt_and_limits(recipe, tokenizer, template)
    sampling = Sampling(section.temperature, section.top_k, section.top_p)
    sampled = generate_batch(model, [prompt_ids] * section.samples, limits, sampling, seed=section.seed)
    return ["".join(_texts(iter(ids), set(limits.stop_ids), tokenizer)) for ids in sampled]


def prompt_and_limits(
    recipe: Recipe, tokenizer: Tokenizer, template: ChatTemplate | None = None
) -> tuple[list[int], Limits]:
    """Return the token ids of ``generate.prompt`` and the limits on its completion. ``template`` is as in ``complete``.

    Raises:
        RequestError: the prompt has characters that the tokenizer does not know.
    """
    section = recipe.generate
    prompt_ids = encode_prompt(section.prompt, tokenizer, "generate.prompt")
    stop_ids = tokenizer.stop_ids
    if section.chat:
        template = template or chat_template.default(tokenizer)
        prompt_ids = template.prompt([{"role": "user", "content": section.prompt}])
        stop_ids = template.stop_ids
    return prompt_ids, Limits(
        section.max_new_tokens,
        context_length=recipe.model.max_seq_len or len(prompt_ids) + section.max_new_tokens,
        vocabulary_size=tokenizer.vocab_size,
        stop_ids=set(stop_ids),
        banned_ids=[i for i in range(tokenizer.vocab_size) if tokenizer.is_reserved(i)],
        crop=section.crop,
    )


def _reporting_drafts(drafting: Speculation, prompt_ids: list[int]) -> Iterator[int]:
    """Yield the ids from speculative decoding, then print the number of accepted drafts to stderr."""
    sampled = drafting.generate(prompt_ids)

    def reporting() -> Iterator[int]:
        try:
            yield from sampled
        finally:  # because the caller stops reading at a stop token
            print(f"\n{drafting.accepted} of {drafting.drafted} drafts were accepted", file=sys.stderr)

    return reporting()


def _reporting_full_context(sampled: Iterator[int], limits: Limits, prompt: int) -> Iterator[int]:
    """Yield the sampled ids, then print a message to stderr if the context is full."""
    left = limits.budget(prompt)
    for token in sampled:
        left -= 1
        yield token
    if not left:
        print(
            f"\nstopped at the end of the context: model.max_position_embeddings is {limits.context_length}",
            file=sys.stderr,
        )


def _texts(sampled: Iterator[int], stops: set[int], tokenizer: Tokenizer) -> Iterator[str]:
    ids: list[int] = []
    yielded = ""
    for token in sampled:
        if token in stops:
            break
        ids.append(token)
        text = tokenizer.decode(ids)
        # A character that spans several byte tokens decodes to U+FFFD until its last token arrives.
        if not text.endswith("\ufffd"):
            yield text[len(yielded) :]
            yielded = text
    yield tokenizer.decode(ids)[len(yielded) :]
