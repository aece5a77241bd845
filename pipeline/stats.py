"""A table of what the data artefacts of a run hold, from their manifests alone."""

from typing import Any

from artefacts import manifest
from artefacts.layout import RunLayout
from configs.errors import RequestError
from configs.schema import Recipe


def table(recipe: Recipe) -> list[str]:
    """Lines of the table.

    Raises:
        RequestError: the run has no data artefact.
    """
    layout = RunLayout.of(recipe)
    lines: list[str] = []
    for name in ("documents", "tokenizer", "tokens", "examples"):
        made = manifest.read(getattr(layout, name))
        if made is None:
            continue
        lines.append(f"{name} ({getattr(layout, name)})")
        rows = _flat(made.counts)
        if name == "tokens":
            rows += _ratios(made.counts)
        width = max(len(key) for key, _ in rows)
        lines += [f"  {key:<{width}}  {value:>15}" for key, value in rows]
    if not lines:
        raise RequestError(f"{layout.data} holds no data artefact: run `python -m pipeline run` first")
    return lines


def _flat(counts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in counts.items():
        label = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict):
            rows += _flat(value, f"{label}: ")
        else:
            rows.append((label, f"{value:,}"))
    return rows


def _ratios(counts: dict[str, Any]) -> list[tuple[str, str]]:
    sides = ((name, counts[name]["bytes"], counts[name]["tokens"]) for name in ("train", "validation"))
    return [(f"{name}: bytes a token", f"{size / tokens:.3f}") for name, size, tokens in sides]
