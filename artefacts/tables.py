"""Tables for the terminal."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], names: int = 1) -> list[str]:
    """Align the columns of a table: the first ``names`` columns to the left, the others (numbers) to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append(
            "  ".join(cell.ljust(width) if column < names else cell.rjust(width) for column, (cell, width) in cells)
        )
    return [line.rstrip() for line in lines]
