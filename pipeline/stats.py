"""What the data artefacts of a run hold: a table from their manifests, and a page with plots from their files."""

from pathlib import Path
from typing import Any

from artefacts import manifest, publish
from artefacts.layout import RunLayout
from artefacts.manifest import Manifest
from configs.errors import RequestError
from configs.schema import Recipe

_ARTEFACTS = ("documents", "tokenizer", "tokens", "packing", "examples")


def stats(recipe: Recipe) -> tuple[list[str], Path]:
    """Write the page; lines of the table, and where the page is.

    Raises:
        RequestError: the run has no data artefact, or one of them is damaged.
    """
    layout = RunLayout.of(recipe)
    found = {name: made for name in _ARTEFACTS if (made := manifest.read(getattr(layout, name)))}
    if not found:
        raise RequestError(f"{layout.data} holds no data artefact: run `python -m pipeline run` first")
    from pipeline.stats_page import build_page

    publish.write_text(layout.stats, build_page(recipe.run.name, layout, found))
    return _table(layout, found), layout.stats


def _table(layout: RunLayout, found: dict[str, Manifest]) -> list[str]:
    lines: list[str] = []
    for name, made in found.items():
        lines.append(f"{name} ({getattr(layout, name)})")
        rows = _flat(made.counts)
        if name == "tokens":
            rows += _ratios(made.counts)
        width = max(len(key) for key, _ in rows)
        lines += [f"  {key:<{width}}  {value:>15}" for key, value in rows]
    return lines


def _flat(counts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and figures, each source's and side's behind its name; reasons, which name keys, are left as they are."""
    rows: list[tuple[str, str]] = []
    for key, value in counts.items():
        label = key if prefix.endswith(("dropped: ", "bad inputs: ")) else key.replace("_", " ")
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{label}: ")
        else:
            rows.append((prefix + label, f"{value:,.4f}" if isinstance(value, float) else f"{value:,}"))
    return rows


def _ratios(counts: dict[str, Any]) -> list[tuple[str, str]]:
    sides = ((name, counts[name]["bytes"], counts[name]["tokens"]) for name in ("train", "validation"))
    return [(f"{name}: bytes a token", f"{size / max(tokens, 1):.3f}") for name, size, tokens in sides]
