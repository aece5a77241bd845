"""What the data artefacts of a run hold: a table from their manifests, and a page with plots from their files."""

from pathlib import Path
from typing import Any

from artefacts import atomic, command_hints, repair_hints
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from configs.run_layout import RunLayout
from configs.schema import Recipe

_ARTEFACTS = ("documents", "tokenizer", "tokens", "packing", "examples")


def stats(recipe: Recipe) -> tuple[list[str], Path]:
    """Write the page; lines of the table, and where the page is.

    Raises:
        RequestError: the run has no data artefact, or one of them is damaged.
    """
    layout = RunLayout.of(recipe)
    read = {name: repair_hints.read_manifest(name, getattr(layout, name)) for name in _ARTEFACTS}
    manifests = {name: published for name, published in read.items() if published}
    if not manifests:
        command = command_hints.make("data")
        raise RequestError(f"{layout.data} holds no data artefact: run `{command}` first")
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
    """The counts without what a sample leaves out, where the recipe asked for none."""
    sources = published.identity.get("sources", {})
    if any(section.get("sample_bytes") for section in sources.values()):
        return published.counts
    counts = {key: value for key, value in published.counts.items() if key != "not_sampled"}
    if "sources" in counts:
        own = counts["sources"].items()
        counts["sources"] = {name: {k: v for k, v in of.items() if k != "not_sampled"} for name, of in own}
    return counts


def _columns(counts: dict[str, Any], ratios: bool) -> list[str]:
    """Lines of names and figures; of several sources a column each, and one of the total."""
    total = {key: value for key, value in counts.items() if key != "sources"}
    sources = counts.get("sources", {})
    every = [*sources.values(), total]
    columns = [_flat(own) | (_ratios(own) if ratios else {}) for own in every]
    rows = [("", *sources, "total")] if sources else []
    for key in columns[-1]:
        # What a source counts none of is 0 there; what is counted of all sources together only is left out.
        empty = ["0" if key.split(": ")[0].replace(" ", "_") in own else "" for own in every]
        rows.append((key, *(figures.get(key, none) for figures, none in zip(columns, empty, strict=True))))
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join(["", cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], (max(15, w) for w in widths[1:]))])
        for cells in rows
    ]


def _flat(counts: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Names and figures, each side's behind its name; reasons and classes are left as they are."""
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
    return {f"{name}: bytes a token": f"{size / max(tokens, 1):.3f}" for name, size, tokens in sides}
