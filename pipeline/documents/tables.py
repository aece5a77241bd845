"""Tables for the terminal: documents per source, dropped documents per reason, and document lengths."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artefacts import atomic
from artefacts.pages.formats import compact


def sources(counts_by_source: dict[str, Any]) -> list[str]:
    """Return tables of sources, dropped documents by reason, and masked data (see ``counts.by_source``)."""
    rows = [("source", "read", "of text", "kept", "of text", "dropped", "unreadable")]
    dropped: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    for name, counts in counts_by_source.items():
        unreadable = sum(counts["bad"].reasons.values())
        rows.append(
            (
                name,
                f"{counts['read']:,}",
                compact(counts["read_bytes"], "B"),
                f"{counts['kept']:,}",
                compact(counts["kept_bytes"], "B"),
                f"{sum(counts['dropped'].values()):,}",
                f"{unreadable:,}",
            )
        )
        dropped.update(counts["dropped"])
        masked.update(counts["masked"])
        dropped.update({f"unreadable: {reason}": count for reason, count in counts["bad"].reasons.items()})
    lines = _aligned(rows)
    if dropped:
        lines += ["", *_aligned([("dropped", "documents"), *((why, f"{n:,}") for why, n in dropped.most_common())])]
    if masked:
        lines += ["", *_aligned([("masked", "pieces"), *((kind, f"{n:,}") for kind, n in masked.items())])]
    return lines


def coverage(parts: Path) -> str:
    """Return a line that says how many of the sources' parts the tables cover."""
    total = atomic.read_json(parts / "parts.json")["parts"]
    read = len(list(parts.glob("[0-9]*.json")))
    if read >= total:
        return f"all {total:,} parts of the source have been read, over all tasks"
    return f"{read:,} of {total:,} parts of the source have been read so far, over all tasks"


def lengths(paths: list[Path]) -> list[str]:
    """Return quantiles and a histogram of document lengths, in UTF-8 bytes, read from Parquet files."""
    import numpy as np
    import pyarrow.parquet as parquet

    columns = [parquet.read_table(path, columns=["bytes"])["bytes"].to_numpy() for path in paths]
    sizes = np.concatenate([np.zeros(0, np.int64), *columns])
    if not len(sizes):
        return []
    marks = (0, 10, 50, 90, 99, 100)
    quantiles = "  ".join(
        f"{'min' if q == 0 else 'max' if q == 100 else f'{q}%'} {int(v):,}"
        for q, v in zip(marks, np.percentile(sizes, marks, method="lower"), strict=True)
    )
    powers = np.bincount(np.frexp(np.maximum(sizes, 1))[1] - 1)
    first = int(np.flatnonzero(powers)[0])
    rows = [("bytes from", "documents", "")]
    rows += [
        (f"{1 << power:,}", f"{powers[power]:,}", "#" * round(40 * powers[power] / powers.max()))
        for power in range(first, len(powers))
    ]
    return [f"document length in bytes: {quantiles}", *_aligned(rows)]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Align the columns of rows. The first column and bars are left-aligned, and numbers are right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [
            cell.ljust(width) if cell.startswith("#") else cell.rjust(width)
            for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines
