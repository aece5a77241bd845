"""Computes the counts of the documents stage from the counts of parts and shards."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from artefacts import atomic
from pipeline.documents.write_shards import clean_name
from pipeline.sources.bad_inputs import BadInputs

#: Names of the part counts and shard counts to sum.
_PART_COUNTS = ("read", "read_bytes", "kept", "kept_bytes")
_SHARD_COUNTS = ("documents", "bytes", "not_sampled", "removed_lines")


def by_source(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Sum the counts of each source's parts (see ``ingest.part_counts``)."""
    sums: dict[str, Any] = {}
    for part in parts:
        if part["dataset"] not in sums:
            empty = {"dropped": Counter(), "masked": Counter(), "bad": BadInputs()}
            sums[part["dataset"]] = dict.fromkeys(_PART_COUNTS, 0) | empty
        source = sums[part["dataset"]]
        for key in _PART_COUNTS:
            source[key] += part[key]
        source["dropped"].update(part["dropped"])
        source["masked"].update(part["masked"])
        source["bad"].merge(part["bad"])
    return sums


def totals(read: dict[str, Any], shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the manifest's counts: the totals, and each source's counts under ``sources`` if there are several.

    Args:
        read: the result of ``by_source``.
        shards: the counts of every shard.
    """
    sources: dict[str, Any] = {}
    for name, counts in read.items():
        of_source = [shard for shard in shards if shard["dataset"] == name]
        sources[name] = {
            "read_documents": counts["read"],
            "read_bytes": counts["read_bytes"],
            **{key: sum(shard[key] for shard in of_source) for key in _SHARD_COUNTS},
            "dropped": dict(sum((Counter(shard["dropped"]) for shard in of_source), Counter())),
            "masked": dict(counts["masked"]),
            "bad_inputs": dict(counts["bad"].reasons),
        }
    sums: dict[str, Any] = {}
    for counts in sources.values():
        for key, value in counts.items():
            if isinstance(value, dict):
                before = sums.setdefault(key, {})
                before |= {name: before.get(name, 0) + count for name, count in value.items()}
            else:
                sums[key] = sums.get(key, 0) + value
    return sums | ({"sources": sources} if len(sources) > 1 else {})


def files_by_source(sources: list[str], shards: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the file names of each source, in order."""
    files: dict[str, list[str]] = {name: [] for name in sources}
    for number, shard in enumerate(shards):
        files[shard["dataset"]].append(clean_name(number))
    return files


def write_unreadable(read: dict[str, Any], work: Path) -> None:
    """Write examples of unreadable inputs, if there are any, to ``unreadable.json``, grouped by source and reason."""
    examples = {name: counts["bad"].examples for name, counts in read.items() if counts["bad"].reasons}
    if examples:
        atomic.write_json(work / "unreadable.json", examples)
