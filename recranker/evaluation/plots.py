"""One picture of the results table."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from recranker.evaluation.report import BASELINES, difference_text, ordered

# Okabe & Ito's palette, which colour-blind readers can tell apart; groups differ in marker too
GROUPS = {
    "baseline": ("#000000", "s", "no LLM"),
    "untuned": ("#E69F00", "^", "untuned LLM"),
    "tuned": ("#0072B2", "o", "tuned LLM"),
}


def plot_results(results: pa.Table, path: Path, *, data: str) -> None:
    """Write a PNG: NDCG@3 of each row as a dot, its bootstrap interval around it, the backbone as a line.

    The bar is the interval of the difference to the backbone, drawn from the backbone's value: one
    that crosses the line is a difference that could be none.

    Args:
        results: RESULTS.
        path: Where the PNG goes.
        data: What was ranked, for the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = ordered(results).to_pylist()
    figure = Figure(figsize=(9.0, 1.9 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and without pyplot's global state
    _draw(figure.subplots(), rows)
    _legend(figure, rows)
    figure.suptitle(f"NDCG@3 on {data}", x=0.01, ha="left", fontweight="bold")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def group_of(row: str) -> str:
    """Which of GROUPS a row is drawn as."""
    if row in BASELINES:
        return "baseline"
    return "untuned" if row.startswith("untuned_") else "tuned"


def _draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    base = rows[0]["ndcg_at_3"]
    edge = _right_edge(rows)
    axes.axvline(base, color="#999999", linewidth=1.2, zorder=1)
    for place, row in enumerate(rows):
        colour, marker, _ = GROUPS[group_of(row["row"])]
        value, low, high = row["ndcg_at_3"], base + row["difference_low"], base + row["difference_high"]
        if value > edge:  # the oracle, often far beyond all others
            axes.plot(edge, place, ">", color=colour, markersize=8, clip_on=False)
        else:
            axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.55)
            axes.plot(value, place, marker, color=colour, markersize=7, zorder=3)
        _note(axes, place, f"{value:.4f}", difference_text(row, base) if place else "grey line")
    _note(axes, -1, "NDCG@3", "against backbone, 95 %")
    _frame(axes, rows, edge)


def _right_edge(rows: list[dict[str, Any]]) -> float:
    """Where the axis ends: just beyond all but the oracle, so that their differences can be seen."""
    base = rows[0]["ndcg_at_3"]
    ends = [max(row["ndcg_at_3"], base + row["difference_high"]) for row in rows if row["row"] != "oracle"]
    return 1.05 * max(ends) or 1.0


def _note(axes: Any, place: int, value: str, difference: str) -> None:
    """A line of the two text columns right of the axis."""
    for column, text in ((1.03, value), (1.155, difference)):
        where = ("axes fraction", "data")
        axes.annotate(text, (column, place), xycoords=where, va="center", fontsize=8.5, annotation_clip=False)


def _frame(axes: Any, rows: list[dict[str, Any]], edge: float) -> None:
    axes.set_yticks(range(len(rows)), [row["row"].replace("_", " ") for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # first row on top
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), edge)
    axes.set_xlabel("NDCG@3; bars: 95 % interval of the difference to the backbone (bootstrap over users)", fontsize=9)
    users, hits = rows[0]["users"], rows[0]["users_with_hit"]
    title = f"mean over {users:,} test users; {hits:,} have their target among the candidates"
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _legend(figure: Any, rows: list[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    present = {group_of(row["row"]) for row in rows}
    marks = [
        Line2D([], [], linestyle="", color=colour, marker=marker, label=text)
        for name, (colour, marker, text) in GROUPS.items()
        if name in present
    ]
    if _right_edge(rows) < max(row["ndcg_at_3"] for row in rows):
        marks.append(Line2D([], [], linestyle="", color="#000000", marker=">", label="beyond the scale"))
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
