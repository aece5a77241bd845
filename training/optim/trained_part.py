"""What fine-tuning trains: which parameters, at which learning rates, and what starts from new weights."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch

from artefacts.errors import RequestError
from configs.schema.adapter import LoraSection
from configs.schema.finetune import FinetuneSection
from training.layers.adapters.attach import attach_adapters, init_adapters
from training.layers.init import draw_normal

#: The tables that ``finetune.reset`` can start from new weights.
_TABLES = {"embeddings": "model.embed_tokens.weight", "head": "lm_head.weight"}


@dataclass(frozen=True)
class TrainedPart:
    """The part of a model that a run trains. By default, the model is trained as it was built.

    Attributes:
        lora: the adapters that are trained instead of the model's own weights, if any.
        freeze: patterns of the names of parameters that are not trained.
        rate_scales: pattern of parameter names -> multiplier of their learning rate.
        reset: tables that start from new weights, which are trained even if there are adapters.
        load: loads the adapters to start from into a model, or None if they start from their initial weights.
        section: dotted key of the recipe's section, for messages.
    """

    lora: LoraSection | None = None
    freeze: tuple[str, ...] = ()
    rate_scales: Mapping[str, float] = field(default_factory=dict)
    reset: tuple[str, ...] = ()
    load: Callable[[Any], None] | None = None
    section: str = "finetune"

    @classmethod
    def of(cls, section: FinetuneSection, key: str = "finetune") -> "TrainedPart":
        """Return the part that a recipe's fine-tuning stage trains. ``key`` is the stage's dotted key."""
        return cls(section.lora, section.freeze, section.learning_rates, section.reset, section=key)

    def prepare(self, model: Any, seed: int, new: bool) -> None:
        """Attach adapters, and freeze what is not trained.

        Call this before the optimizer is built, and while the model is complete, in fp32 and on CPU. If ``new`` is
        set, the model holds the weights to start from, and adapters and reset tables are initialized from ``seed``.

        Raises:
            RequestError: a pattern matches no parameter, or nothing would be trained.
        """
        if self.lora:
            attach_adapters(model, self.lora)
        named = dict(model.named_parameters())
        for pattern in self.freeze:
            for name in _matching(pattern, named, f"{self.section}.freeze"):
                named[name].requires_grad_(False)
        for table in self.reset:
            self._reset(model, _TABLES[table], f"{seed}", new)
        trained = [name for name, parameter in named.items() if parameter.requires_grad]
        if not trained:
            raise RequestError(
                f"{self.section}.freeze matches every parameter, so nothing would be trained: narrow a pattern"
            )
        for pattern in self.rate_scales:
            _matching(pattern, trained, f"{self.section}.learning_rates")
        if new and self.lora:
            init_adapters(model, seed)
            if self.load:
                self.load(model)

    def check(self, build_model: Callable[[], Any]) -> str:
        """Check the patterns on a model without memory, which ``build_model`` returns.

        Returns a line about the trained part, or "" if all parameters are trained.

        Raises:
            RequestError: as for :meth:`prepare`.
        """
        model = self._on_meta(build_model)
        numbers = [(p.numel() if p.requires_grad else 0, p.numel()) for p in model.parameters()]
        trained, total = (sum(column) for column in zip(*numbers, strict=True))
        return "" if trained == total else f"trains {trained:,} of {total:,} parameters ({trained / total:.2%})"

    def check_adapter(self, build_model: Callable[[], Any]) -> None:
        """Read the adapter to start from, if any. A run that resumes from a checkpoint does not need it.

        Raises:
            RequestError: there is no adapter, or it does not fit the model that ``build_model`` returns.
        """
        if self.load:
            self.load(self._on_meta(build_model))

    def _on_meta(self, build_model: Callable[[], Any]) -> Any:
        """Return the prepared model without memory."""
        with torch.device("meta"):
            model = build_model()
        self.prepare(model, 0, new=False)
        return model

    @torch.no_grad()
    def _reset(self, model: Any, name: str, seed: str, new: bool) -> None:
        parameter = dict(model.named_parameters(remove_duplicate=False))[name]
        if any(fnmatchcase(name, pattern) for pattern in self.freeze):
            raise RequestError(
                f"{self.section}.freeze matches {name}, which {self.section}.reset makes new: narrow the pattern"
            )
        parameter.requires_grad_(True)
        if new:
            draw_normal(parameter, f"{seed}/{name}", model.section.initializer_range)


#: All parameters, as the model was built.
EVERYTHING = TrainedPart()


def _matching(pattern: str, names: Iterable[str], key: str) -> list[str]:
    """Return the names that match a pattern.

    Raises:
        RequestError: there are none. The message suggests similar names.
    """
    names = list(names)
    if matching := [name for name in names if fnmatchcase(name, pattern)]:
        return matching
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0) if names else []
    raise RequestError(f"{key}: no trained parameter matches {pattern}; similar names: {', '.join(near)}")


def scale_of(name: str, scales: Mapping[str, float]) -> float:
    """Return a parameter's multiplier of the learning rate, from the first pattern that matches its name."""
    return next((scale for pattern, scale in scales.items() if fnmatchcase(name, pattern)), 1.0)
