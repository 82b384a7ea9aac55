"""One picture of an experiment's table: a panel per data set, a dot with its interval per row."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from recranker.evaluation.experiment_table import rows_by_data

FIRST, OTHERS = "#000000", "#0072B2"


def plot_experiment(table: pa.Table, paths: list[Path], *, title: str) -> None:
    """Write NDCG@3 of every row, mean over seeds, with its bootstrap interval over users.

    Args:
        table: What ``experiment_table`` returns.
        paths: Where the picture goes; the ending (.png, .svg) says how it is drawn.
        title: Name of the experiment.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = list(rows_by_data(table).values())
    heights = [len(panel) + 1.6 for panel in panels]
    figure = Figure(figsize=(8.0, 0.7 + 0.32 * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display and without pyplot's global state
    all_axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw(axes, panel)
    all_axes[-1].set_xlabel("NDCG@3, mean over seeds; bars: 95 % interval, bootstrap over users", fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    for path in paths:
        figure.savefig(path, dpi=150)


def _draw(axes: Any, rows: list[dict[str, Any]]) -> None:
    axes.axvline(rows[0]["ndcg_at_3"], color="#999999", linewidth=1.2, zorder=1)
    for place, row in enumerate(rows):
        colour = FIRST if row["row"] == row["against"] else OTHERS
        axes.plot([row["ndcg_at_3_low"], row["ndcg_at_3_high"]], [place, place], color=colour, linewidth=2, alpha=0.55)
        axes.plot(row["ndcg_at_3"], place, "o", color=colour, markersize=7, zorder=3)
        text = f"{row['ndcg_at_3']:.4f}"
        axes.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # first row on top
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_title(f"{rows[0]['dataset']}, {rows[0]['users']:,} users", loc="left", fontsize=9)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
