"""``python -m training compare WHAT``: short runs that differ in a single setting."""

from collections.abc import Callable

from configs.schema import Recipe
from training.compare.activations import compare_activations
from training.compare.attention import compare_attention
from training.compare.compiling import compare_compiled
from training.compare.devices import compare_devices
from training.compare.optimizers import compare_optimizers

_COMPARISONS: dict[str, Callable[[Recipe, int], int]] = {
    "optimizers": compare_optimizers,
    "activations": compare_activations,
    "compile": compare_compiled,
    "devices": compare_devices,
    "attention": compare_attention,
}


def compare(recipe: Recipe, what: str, steps: int) -> int:
    """Run one of ``training.commands.arguments.COMPARISONS``. Returns the exit status."""
    return _COMPARISONS[what](recipe, steps)
