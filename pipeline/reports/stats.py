"""Statistics about a run's data artefacts: a table from their manifests, and a page with plots from their files."""

from pathlib import Path
from typing import Any

from artefacts import atomic, command_hints, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from configs.run_layout import RunLayout
from configs.schema import Recipe

_ARTEFACTS = ("documents", "tokenizer", "tokens", "packing", "examples")


def stats(recipe: Recipe) -> tuple[list[str], Path]:
    """Write the page. Returns the lines of the table, and the path of the page.

    Raises:
        RequestError: the run has no data artefacts, or one of them is damaged.
    """
    layout = RunLayout.of(recipe)
    read = {name: repair_hints.read_manifest(name, getattr(layout, name)) for name in _ARTEFACTS}
    manifests = {name: published for name, published in read.items() if published}
    if not manifests:
        command = command_hints.make("data")
        raise RequestError(f"{layout.data} has no data artefact: run `{command}` first")
    from pipeline.reports.stats_page import build_page

    atomic.write_text(layout.stats, build_page(recipe.run.name, layout, manifests))
    return _table(layout, manifests), layout.stats


def _table(layout: RunLayout, manifests: dict[str, Manifest]) -> list[str]:
    lines: list[str] = []
    for name, published in manifests.items():
        lines.append(f"{name} ({getattr(layout, name)})")
        lines += _columns(_reported_counts(published), ratios=name == "tokens")
    return lines


def _reported_counts(published: Manifest) -> dict[str, Any]:
    """Return the counts, without ``not_sampled`` if the recipe doesn't sample any source."""
    sources = published.identity.get("sources", {})
    if any(section.get("sample_bytes") for section in sources.values()):
        return published.counts
    counts = {key: value for key, value in published.counts.items() if key != "not_sampled"}
    if "sources" in counts:
        items = counts["sources"].items()
        counts["sources"] = {name: {k: v for k, v in of.items() if k != "not_sampled"} for name, of in items}
    return counts


def _columns(counts: dict[str, Any], ratios: bool) -> list[str]:
    """Return lines of names and numbers. If there are several sources, there is a column for each and for the total."""
    total = {key: value for key, value in counts.items() if key != "sources"}
    sources = counts.get("sources", {})
    counts_of_columns = [*sources.values(), total]
    columns = [_flat(of) | (_ratios(of) if ratios else {}) for of in counts_of_columns]
    rows = [("", *sources, "total")] if sources else []
    for key in columns[-1]:
        # A count that a source lacks is 0, or an empty cell if it is only counted over all sources together.
        empty = ["0" if key.split(": ")[0].replace(" ", "_") in of else "" for of in counts_of_columns]
        rows.append((key, *(figures.get(key, none) for figures, none in zip(columns, empty, strict=True))))
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(["", cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], (max(15, w) for w in widths[1:]))])
        for cells in rows
    ]


def _flat(counts: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested counts to names and numbers. Outer names become prefixes. Reasons and classes are not changed."""
    rows: dict[str, str] = {}
    for key, value in counts.items():
        label = key if prefix.endswith(("dropped: ", "bad inputs: ", "classes: ")) else key.replace("_", " ")
        if isinstance(value, dict):
            rows |= _flat(value, f"{prefix}{label}: ")
        else:
            rows[prefix + label] = f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"
    return rows


def _ratios(counts: dict[str, Any]) -> dict[str, str]:
    sides = ((name, counts[name]["bytes"], counts[name]["tokens"]) for name in ("train", "validation"))
    return {f"{name}: bytes per token": f"{size / max(tokens, 1):.3f}" for name, size, tokens in sides}
