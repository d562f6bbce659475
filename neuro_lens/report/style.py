"""How pictures look: colours that colour-blind readers tell apart, thin lines, no frames."""

from __future__ import annotations

import base64
import functools
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK = "#1d2329"
GREY = "#7d8590"
FAINT = "#d8dde3"
BAND = "#eceff2"
BLUE = "#0072b2"
VERMILION = "#d55e00"
FONTS = "-apple-system, BlinkMacSystemFont, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
DIVERGING = LinearSegmentedColormap.from_list(
    "blue_white_vermilion", ["#0b4f7d", "#5ba3cf", "#ffffff", "#f0955a", "#b04a00"]
)

_RC: Any = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.08,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "neuro_lens",
    "text.color": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "xtick.major.width": 0.8,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
    "ytick.major.width": 0.8,
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(plot: Callable[P, R]) -> Callable[P, R]:
    """Run a plot function under the report's settings, leaving the caller's as they were."""

    @functools.wraps(plot)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(_RC):
            return plot(*args, **kwargs)

    return run


def blank(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` × ``height`` inches that pyplot does not know."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def panels_of_rows(n_panels: int, rows: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side that share named rows, from top to bottom.

    Parameters
    ----------
    n_panels : int
        A single one is half as wide as the figure.
    rows : sequence of str
        Such as recordings; the first is at y = 0, the next at 1.
    height : float
        Of a row, in inches.
    """
    figure = blank(8.6, 0.95 + height * len(rows))
    axes = list(figure.subplots(1, max(2, n_panels), sharey=True, squeeze=False)[0])
    for axis in axes:
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.set_yticks(range(len(rows)), rows)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    for axis in axes[n_panels:]:
        axis.set_visible(False)
    return figure, axes[:n_panels]


@styled
def data_uri(figure: Figure) -> str:
    """Return a figure as an SVG data URI; its text is set in the reader's own font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "neuro_lens"})
    text = re.sub(r"'DejaVu Sans'", FONTS.replace('"', "'"), buffer.getvalue())
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def number(value: Any, digits: int = 2, sign: bool = False) -> str:
    """Write a number with a true minus sign, and a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)) or value != value:
        return "–"
    text = f"{float(value):{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "").replace("+", "")
    return text.replace("-", "−")


def floor_of(row: Any) -> float:
    """Return the smallest p that a row's controls can give, from their number where not said."""
    said = getattr(row, "p_floor", float("nan"))
    return float(said if said == said else 1 / (row.n_controls + 1))


def p_value(p: Any, floor: Any = None) -> str:
    """Write a p, as ``≤`` where it lies at the smallest value that the test could give."""
    if p is None or p != p:
        return "–"
    at_floor = floor is not None and floor == floor and p <= floor * (1 + 1e-9)
    digits = 2 if p >= 0.1 else 3 if p >= 0.001 else 4
    return f"{'≤ ' if at_floor else ''}{p:.{digits}f}"


def interval(low: Any, high: Any, digits: int = 2) -> str:
    """Write an interval, or nothing where there is none."""
    if low is None or high is None or low != low or high != high:
        return ""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def value_name(value: object) -> str:
    """Write a value of a variable, a number without needless zeros."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def plural(n: int, word: str) -> str:
    """Write a count of things."""
    return f"{n} {word}{'' if n == 1 else 's'}"
