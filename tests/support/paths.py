"""Where tests find the checkout, its recipes, and real text to read."""

import os
from pathlib import Path

from artefacts.checkout import CHECKOUT

DEMO_RECIPE = CHECKOUT / "configs" / "demo.yaml"


def recipe_file(name: str) -> Path:
    """Return the recipe of that name in ``configs/`` or a folder below it."""
    (path,) = (CHECKOUT / "configs").rglob(f"{name}.yaml")
    return path


#: Real text; tests that read it skip without it.
SHARED_DATA = Path(os.environ.get("MILLRACE_SHARED_DATA", CHECKOUT.parent / "shared" / "data"))
