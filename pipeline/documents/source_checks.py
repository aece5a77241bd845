"""Check, after reading, that not too many inputs were unreadable and that every source has documents left."""

import re
import shutil
from pathlib import Path
from typing import Any

from artefacts.errors import RequestError
from configs.schema import Recipe
from pipeline.documents import counts
from pipeline.documents.ingest import finished_parts
from pipeline.documents.write_shards import DUPLICATE, NEAR_DUPLICATE
from pipeline.sources.bad_inputs import BadInputs
from pipeline.sources.base import Source

_KEY = re.compile(r"data\.clean[.\w]*\w")
#: Recipe keys for the reasons that don't mention a key.
_KEYS = {DUPLICATE: "data.clean.exact_dedup", NEAR_DUPLICATE: "data.clean.near_dedup"}


def check_reading(recipe: Recipe, sources: dict[str, Source], parts: Path) -> None:
    """Check the counts of all parts. Removes the parts if a check fails and no source has any documents left.

    Raises:
        RequestError: a part is not finished, too many inputs of a source are unreadable, or cleaning dropped all of a
            source's documents.
    """
    read = counts.by_source(finished_parts(parts))
    try:
        for name, source in sources.items():
            bad = read[name]["bad"] if name in read else BadInputs()
            bad.check(recipe.data.max_bad_fraction, source.name, recipe.data.key_of(recipe.data.named_sources[name]))
        require_documents(recipe, {name: {**of, "documents": of["kept"]} for name, of in read.items()})
    except RequestError:
        # With a corrected recipe, everything has to be read again.
        if not any(of["kept"] for of in read.values()):
            shutil.rmtree(parts)
        raise


def require_documents(recipe: Recipe, by_source: dict[str, dict[str, Any]]) -> None:
    """Check that every source has documents.

    Args:
        recipe: the recipe that defines the sources.
        by_source: for each source, the number of ``documents``, and the number ``dropped`` for each reason.

    Raises:
        RequestError: a source has no documents left. The message says why they were dropped and what to change.
    """
    named = recipe.data.named_sources
    empty = {name: of["dropped"] for name, of in by_source.items() if not of["documents"]}
    if not empty:
        return
    lines = []
    keys: dict[str, None] = {}
    for name, dropped in empty.items():
        listed = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
        lines.append(f"{recipe.data.key_of(named[name])}: no document is left after cleaning: {listed}")
        for reason in sorted(dropped):
            keys |= dict.fromkeys(_KEY.findall(_KEYS.get(reason, reason)))
    hints = [f"relax {' or '.join(keys)}"] if keys else []
    if len(named) > len(empty):
        hints.append("remove this source" if len(empty) == 1 else "remove these sources")
    raise RequestError(f"{'; '.join(lines)}: {', or '.join(hints)}")
