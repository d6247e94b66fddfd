"""A comparison's figures as words: the sentence of a pair, what it means, numbers with their signs."""

from collections.abc import Mapping
from typing import Any

from s2robot.comparison.folder import Arm, Comparison, Pair, Point
from s2robot.reporting.page import as_text

MINUS, NBSP = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
LEVEL = 0.05  # of p and of the intervals (95 %)


def sentence(comparison: Comparison, pair: Pair) -> str:
    """A pair's result as text: "Base + S² +12.3 points against Base [+4.1, +20.5], p = 0.0040, N = 384"."""
    a, b = comparison.label(pair.a), comparison.label(pair.b)
    text = (
        f"{a} {points(pair.difference)}{NBSP}points against {b} [{points(pair.low)}, "
        f"{points(pair.high)}], {p_text(pair.p_holm)}, N{NBSP}={NBSP}{pair.episodes}"
    )
    return {True: "", False: "No clear difference: ", None: "Borderline: "}[verdict(pair)] + text


def verdict(pair: Pair) -> bool | None:
    """Whether the arms differ: True if interval and test both say so, False if neither does, None otherwise."""
    outside, rejected = pair.low > 0 or pair.high < 0, pair.p_holm < LEVEL
    return outside if outside == rejected else None


def explanation(comparison: Comparison, pair: Pair) -> str:
    """What the figures of a pair mean, as plain text."""
    a, b = comparison.label(pair.a), comparison.label(pair.b)
    low, high = (_worse_or_better(end) for end in (pair.low, pair.high))
    if verdict(pair) is None:
        return (
            f"Interval and test disagree, so the result stands on the edge: the interval reaches from {low} to {high}, "
            f"and {p_text(pair.p_holm)}."
        )
    if not verdict(pair):
        return (
            f"The interval holds 0, so this run does not tell {a} from {b}. It fits {a} being anything from "
            f"{low} to {high}."
        )
    more, less = (a, b) if pair.difference > 0 else (b, a)
    least, most = sorted((abs(100 * pair.low), abs(100 * pair.high)))
    return (
        f"{more} succeeded more often than {less}. The data fit {more} being {least:.1f} to {most:.1f} points "
        "better."
    )


def _worse_or_better(difference: float) -> str:
    return f"{abs(100 * difference):.1f} points {'worse' if difference < 0 else 'better'}"


def points(difference: float) -> str:
    """0.123 -> "+12.3", with a true minus sign."""
    return f"{100 * difference:+.1f}".replace("-", MINUS)


def percent(fraction: float) -> str:
    """0.123 -> "12.3 %"."""
    return f"{100 * fraction:.1f}{NBSP}%"


def p_text(p: float) -> str:
    """0.00004 -> "p < 0.001", 0.0412 -> "p = 0.041"."""
    return f"p{NBSP}<{NBSP}0.001" if p < 0.001 else f"p{NBSP}={NBSP}{p:.2g}"


def span(row: Arm | Point) -> str:
    """The interval of a success, in percent: "44.4–85.8"."""
    return f"{100 * row.low:.1f}–{100 * row.high:.1f}"


def named(value: Any) -> str:
    """A setting as short text: its name if it is an object that has one."""
    if isinstance(value, Mapping):
        return (
            as_text(value["name"])
            if "name" in value
            else as_text([f"{k} {as_text(v)}" for k, v in value.items()])
        )
    return as_text(value)


def measured(cell: Any) -> str:
    """A table's cell: text, a number, or a measured value as "value [low, high]"."""
    if isinstance(cell, Mapping):
        value, low, high = (cell.get(key) for key in ("value", "low", "high"))
        return (
            rounded(value)
            if low is None or high is None
            else f"{rounded(value)} [{rounded(low)}, {rounded(high)}]"
        )
    return rounded(cell) if cell is None or isinstance(cell, float) else as_text(cell)


def rounded(value: float | None) -> str:
    """Three figures, never as a power of ten: 17.482 -> "17.5", 2811904 -> "2811904"; None -> "–"."""
    if value is None:
        return "–"
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", MINUS)
