"""A language model for lm-eval that scores and generates with Millrace's decoder.

It gives the same scores as lm-eval's own backend ``hf`` on the exported model. Where ``hf`` leaves a choice, the choice
is the same: the token before an empty context, the windows over long texts, truncation from the left, and the softmax
over all rows of the head.
"""

import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from functools import lru_cache
from itertools import groupby
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from artefacts.errors import RequestError
from artefacts.progress import bar
from tokenizer.base import Tokenizer
from tokenizer.chat_template import ChatTemplate, default
from training.inference.generate import Limits, generate_batch
from training.inference.sampling import Sampling
from training.inference.score import score
from training.models.causal_lm import CausalLM

#: Generation settings that are understood. Others, such as the number of beams, are rejected.
_GENERATION = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
#: Number of texts whose ids are kept, because the choices of a question share its context.
_KEPT = 1024


class MillraceLM(TemplateLM):
    """A decoder and its tokenizer, as lm-eval calls them."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        max_length: int,
        batch: int,
        template: ChatTemplate | None = None,
    ) -> None:
        """Wrap a model in evaluation mode.

        Args:
            model: the model.
            tokenizer: the tokenizer that it was trained with.
            max_length: maximum number of tokens that the model reads at once.
            batch: number of sequences of ``max_length`` tokens per forward pass. Shorter sequences are batched in
                greater numbers.
            template: the chat template that the model was fine-tuned with. None for the default.
        """
        super().__init__()
        # lm-eval's own output is silenced while it calls this model, but not the model's progress.
        self._stderr = sys.stderr
        self._model, self._tokenizer, self._batch = model, tokenizer, batch
        self.max_length = max_length
        self._template = template or default(tokenizer)
        self._device = next(iter(model.parameters())).device
        # Precedes the id of a control token in a rendered conversation. It is random, so that no text contains it.
        self._control = f"\x02{secrets.token_hex(8)}\x03"
        self._encode = lru_cache(_KEPT)(tokenizer.encode_as_released)

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.end_of_text_id

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without context: the beginning token, or the end-of-text token if there is none."""
        return self._tokenizer.prefix_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode a text, in which only :meth:`apply_chat_template` can have put control tokens."""
        text, *rest = string.split(self._control)
        if not rest:
            return self._tokenizer.encode(text) if add_special_tokens is False else list(self._encode(text))
        ids = self._tokenizer.encode(text)
        for piece in rest:
            token, following = piece.split(";", 1)
            ids += [int(token), *self._tokenizer.encode(following)]
        return ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return (log-probability, whether greedy) of a continuation for each request (context, continuation)."""
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        with redirect_stderr(self._stderr), bar(len(pairs), "request", "loglikelihood") as progress:
            scores = score(self._model, pairs, self.max_length, self._batch * self.max_length, progress.update)
        return [(one.log_probability, one.greedy) for one in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-probability of each text. Long texts are read in windows that overlap by one token."""
        owners, windows = [], []
        for number, (text,) in enumerate(request.args for request in requests):
            for window in utils.get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            ):
                owners.append(number)
                windows.append((None, *utils.make_disjoint_window(window)))
        sums = [0.0] * len(requests)
        for owner, (log_probability, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += log_probability
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return the text that the model generates after each context, up to a stop string.

        Raises:
            RequestError: a task needs a kind of generation that Millrace lacks, or more tokens than the model reads.
        """
        texts = [""] * len(requests)
        numbered = [(repr(request.args[1]), number) for number, request in enumerate(requests)]
        with redirect_stderr(self._stderr), bar(len(requests), "request", "generate_until") as progress:
            for _, group in groupby(sorted(numbered), key=lambda item: item[0]):
                numbers = [number for _, number in group]
                prompts = {number: self.tok_encode(requests[number].args[0]) for number in numbers}
                numbers.sort(key=lambda number: len(prompts[number]))
                for start in range(0, len(numbers), self._batch):
                    batch = numbers[start : start + self._batch]
                    options = requests[batch[0]].args[1]
                    for number, text in zip(batch, self._generate([prompts[n] for n in batch], options), strict=True):
                        texts[number] = text
                    progress.update(len(batch))
        return texts

    def _generate(self, prompts: list[list[int]], options: Mapping[str, Any]) -> list[str]:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), default_max_gen_toks=256))
        if unknown := sorted(settings.keys() - _GENERATION):
            raise RequestError(
                f"a task sets generation_kwargs.{unknown[0]}: only {', '.join(sorted(_GENERATION))} work"
            )
        count, stops = settings["max_gen_toks"], [stop for stop in settings["until"] if stop]
        if count >= self.max_length:
            raise RequestError(
                f"a task generates up to {count} tokens, but the model reads at most {self.max_length}: set a lower "
                "generation_kwargs.max_gen_toks in its YAML file"
            )
        room = self.max_length - count
        contexts = [(prompt or [self.prefix_token_id])[-room:] for prompt in prompts]
        sampling = Sampling(temperature=0)
        if settings["do_sample"]:
            sampling = Sampling(settings["temperature"], settings.get("top_k", 0), settings.get("top_p", 1.0))
        rows = int(self._model.model.embed_tokens.num_embeddings)
        limits = Limits(count, self.max_length, rows, self._template.stop_ids)
        generated = generate_batch(
            self._model,
            contexts,
            limits,
            sampling,
            seed=0,
            complete=lambda ids: any(stop in self._decode(ids) for stop in stops),
        )
        # As in ``hf``, the name of the end-of-text token also ends a text that spells it out.
        ends = [*stops, self._tokenizer.piece(self._tokenizer.end_of_text_id)]
        return [postprocess_generated_text(self._decode(ids), ends, None) for ids in generated]

    def _decode(self, ids: Sequence[int]) -> str:
        """Decode ids without reserved tokens and without rows of the head that are only padding."""
        return self._tokenizer.decode([token for token in ids if token < self._tokenizer.vocab_size])

    @property
    def tokenizer_name(self) -> str:
        return "millrace"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the Jinja program of the template, which lm-eval records."""
        return self._template.source if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation as text in which :meth:`tok_encode` recognizes the control tokens.

        Without ``add_generation_prompt``, the last message stays open, and the model continues it.
        """
        return self._template.marked_text(chat_history, self._control, add_generation_prompt)
