"""Human-readable numbers."""

import math

_THOUSANDS = ("", "k", "M", "B", "T")
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def integer(value: float) -> str:
    """Format a number without decimals: 12,345."""
    return f"{value:,.0f}"


def compact(value: float, unit: str = "") -> str:
    """Format a number with three digits: 4.47 M or 1.20 B (billion) for counts, 14.0 MB or 98.0 GFLOP/s with a unit."""
    prefixes = _PREFIXES if unit else _THOUSANDS
    step = 0
    while abs(value) >= 999.5 and step < len(prefixes) - 1:
        value, step = value / 1000, step + 1
    digits = 0 if step == 0 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {prefixes[step]}{unit}".rstrip()


def duration(seconds: float) -> str:
    """Format a duration: 47 s, 3 min 12 s, 5 h 20 min, 2 d 3 h."""
    left = round(seconds)
    for size, name, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= size:
            return f"{left // size} {name} {left % size // smaller_size} {smaller}"
    return f"{left} s"


def share(part: float, total: float) -> str:
    """Format a fraction as a percentage: 12.3%. Returns a dash if the total is 0."""
    return f"{100 * part / total:.1f}%" if total else "–"


def decimal(value: float | None, digits: int = 3) -> str:
    """Format a number with decimals: 2.346. Returns a dash for None, NaN and infinity."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "–"
