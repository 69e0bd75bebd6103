"""Numbers and words as pages print them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..measures.statistics import Summary, is_defined

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
NONE = "—"
"""Stands for a value that is not defined."""


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits with a true minus sign, and none before a zero; or a dash."""
    if not is_defined(value):
        return NONE
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """Fixed digits under a plus or a true minus sign; a zero has neither."""
    text = number(value, digits)
    return f"+{text}" if is_defined(value) and round(value, digits) > 0 else text


def spread(summary: Summary, digits: int = 3) -> str:
    """``mean ± sd``; the mean alone where one seed has no sd."""
    if summary.mean is None or summary.sd is None:
        return number(summary.mean, digits)
    return f"{number(summary.mean, digits)} ± {number(summary.sd, digits)}"


def percent(value: float | None, digits: int = 0) -> str:
    """A fraction in percent."""
    return f"{number(100 * value, digits)} %" if is_defined(value) else NONE


def tied(text: str) -> str:
    """The same text without line breaks before a percent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def percent_spread(summary: Summary) -> str:
    """``mean ± sd`` of a fraction in whole percent."""
    if summary.mean is None or summary.sd is None:
        return percent(summary.mean)
    return f"{number(100 * summary.mean, 0)} ± {number(100 * summary.sd, 0)} %"


def digits_for(value: float | None) -> int:
    """Digits after the point that give three significant ones."""
    if not is_defined(value) or value == 0:
        return 3
    return min(8, max(0, 2 - math.floor(math.log10(abs(value)))))


def significant(value: float | None) -> str:
    """Three significant digits."""
    return number(value, digits_for(value))


def p_value(p: float) -> str:
    """``= 0.012``, or ``< 0.001``."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def count(value: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def seconds(value: float | None) -> str:
    """A duration in its natural unit."""
    if not is_defined(value):
        return NONE
    if value < 100:
        return f"{significant(value)} s"
    minutes = round(value / 60)
    return f"{value / 60:.1f} min" if value < 6000 else f"{minutes // 60} h {minutes % 60:02d} min"


def plural(value: int, noun: str) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{count(value)} {noun}{'s' * (value != 1)}"


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
