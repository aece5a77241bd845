"""Explains out-of-memory errors: how much memory was in use, and what to change."""

import errno
import re
import sys
from typing import Any

from artefacts.memory import peak_resident_bytes
from configs.schema import Recipe
from training.estimate.device import device_of
from training.estimate.fitting import relief

#: Matches out-of-memory messages of torch, its libraries and C++. Most of these errors are plain ``RuntimeError``
#: exceptions.
_OUT_OF_MEMORY = re.compile(r"out of memory|can(no|')t allocate memory|not enough memory|bad_alloc", re.IGNORECASE)
_REQUESTED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|KiB|MiB|GiB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}

#: Advice for commands that do not train.
_ADVICE = {
    "generate": "lower generate.max_new_tokens ({new}) or shorten generate.prompt",
    "evaluate": "lower evaluate.batch ({batch}), or generate.max_new_tokens ({new}) if it was generating a completion",
    "evaluate attention": "shorten --text",
    "evaluate temperature": "lower generate.max_new_tokens ({new}) or shorten generate.prompt",
}
#: Commands that train.
_TRAINING = ("pretrain", "finetune", "compare")


def ran_out(error: BaseException) -> bool:
    """Return whether an error means that host or GPU memory ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))
    )


def explain(error: BaseException, recipe: Recipe, running: str, stage: str | None = None) -> str:
    """Explain an out-of-memory error in one line: the memory in use, and what to change.

    Args:
        error: an error for which :func:`ran_out` is true.
        recipe: the command's recipe.
        running: the command, such as ``evaluate attention``.
        stage: name of the fine-tuning stage that ran out of memory, if known.
    """
    used, available = _memory()
    requested = _requested(str(error))
    wanted = f" and requested {_gigabytes(requested)} more" if requested else ""
    change = _ADVICE.get(running, "").format(new=recipe.generate.max_new_tokens, batch=recipe.evaluate.batch)
    if running.startswith(_TRAINING):
        section = recipe.stage(stage) if stage else None
        change = relief(recipe, available, device_of(recipe).kind, section)
    return f"out of memory: this process used {used}{wanted}: {change or 'free some memory'}"


def _memory() -> tuple[str, int]:
    """Return this process's peak memory as text, and the number of bytes available to it."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        peak = torch.cuda.max_memory_allocated()
        return f"{_gigabytes(peak)} of the GPU's {_gigabytes(total)}", free + torch.cuda.memory_reserved()
    peak = peak_resident_bytes()
    return f"{_gigabytes(peak)} of the host's memory", peak


def _requested(text: str) -> float | None:
    """Return the number of bytes that could not be allocated, or None if the message does not say."""
    match = _REQUESTED.search(text)
    return float(match[1]) * _UNITS[match[2].lower()] if match else None


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"
