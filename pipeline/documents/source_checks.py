"""What is refused of the sources once they are read: too much that is unreadable, and a source with nothing left."""

import re
from typing import Any

from artefacts.errors import RequestError
from configs.schema import Recipe
from pipeline.documents.write_shards import DUPLICATE, NEAR_DUPLICATE
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import Source

_KEY = re.compile(r"data\.clean[.\w]*\w")
#: The keys behind reasons that name none.
_KEYS = {DUPLICATE: "data.clean.exact_dedup", NEAR_DUPLICATE: "data.clean.near_dedup"}


def check_reading(recipe: Recipe, sources: dict[str, Source], found: dict[str, Any]) -> None:
    """Look at the counts of finished parts by source, as ``documents.by_source`` gives them.

    Raises:
        RequestError: too much of a source could not be read, or cleaning left none of its documents.
    """
    for name, source in sources.items():
        bad = found[name]["bad"] if name in found else BadInputs()
        bad.check(recipe.data.max_bad_fraction, source.name)
    require_documents(recipe, {name: counts["kept"] for name, counts in found.items()}, found)


def require_documents(recipe: Recipe, left: dict[str, int], counts: dict[str, Any]) -> None:
    """Refuse sources without a document.

    Args:
        recipe: of the sources.
        left: documents of each source by name.
        counts: of each source, with ``dropped`` by reason among them.

    Raises:
        RequestError: of a source no document is left; it says what became of them, and what to change.
    """
    named = recipe.data.named_sources
    empty = {name: counts[name]["dropped"] for name, documents in left.items() if not documents}
    if not empty:
        return
    lines = []
    keys: dict[str, None] = {}
    for name, dropped in empty.items():
        listed = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
        lines.append(f"{recipe.data.key_of(named[name])}: no document is left after cleaning: {listed}")
        for reason in sorted(dropped):
            keys |= dict.fromkeys(_KEY.findall(_KEYS.get(reason, reason)))
    cures = [f"loosen {' or '.join(keys)}"] if keys else []
    if len(named) > len(empty):
        cures.append("take the source out" if len(empty) == 1 else "take these sources out")
    raise RequestError(f"{'; '.join(lines)}: {', or '.join(cures)}")
