"""What to say when memory ran out: what there was, and what to change."""

import errno
import re
import resource
import sys
from typing import Any

from configs.schema import Recipe
from training.estimate.device import device_of
from training.estimate.fitting import relief

#: How torch, its libraries and the C++ beneath them put it; their classes of errors say no more than ``RuntimeError``.
_SAID = re.compile(r"out of memory|can(no|')t allocate memory|not enough memory|bad_alloc", re.IGNORECASE)
_ASKED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|KiB|MiB|GiB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}

#: What to change where nothing is trained.
_INSTEAD = {
    "generate": "lower generate.max_new_tokens ({new}) or shorten generate.prompt",
    "evaluate": "lower evaluate.batch ({batch}), or generate.max_new_tokens ({new}) if it was at a completion",
    "evaluate attention": "shorten --text",
    "evaluate temperature": "lower generate.max_new_tokens ({new}) or shorten generate.prompt",
}
#: Commands that train.
_TRAINING = ("pretrain", "finetune", "compare")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the host or of a GPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_SAID.search(str(error))))


def told(error: BaseException, recipe: Recipe, doing: str) -> str:
    """One line about an error that :func:`ran_out`, of a command on a recipe: what there was, and what to change."""
    had, available = _had()
    wanted = f", and asked for {_gigabytes(asked)} more" if (asked := _asked(str(error))) else ""
    change = _INSTEAD.get(doing, "").format(new=recipe.generate.max_new_tokens, batch=recipe.evaluate.batch)
    if doing.startswith(_TRAINING):
        change = relief(recipe, available, device_of(recipe).kind)
    return f"out of memory: this process had {had}{wanted}: {change or 'free some'}"


def _had() -> tuple[str, int]:
    """What this process held at most, in words, and how many bytes it can have."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        own = torch.cuda.max_memory_allocated()
        return f"{_gigabytes(own)} of the GPU's {_gigabytes(total)}", free + torch.cuda.memory_reserved()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{_gigabytes(most)} of the host's memory", most


def _asked(text: str) -> float | None:
    """Bytes that could not be had, where the error says so."""
    found = _ASKED.search(text)
    return float(found[1]) * _UNITS[found[2].lower()] if found else None


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"
