"""Pictures of the results: files for the record, and SVG that takes the colours of the page it stands in."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from recranker.evaluation.lists import Floats
from recranker.evaluation.results import backbone_text, ordered
from recranker.evaluation.rows import group_of
from recranker.ranking.calibration import ReliabilityBin

# Okabe & Ito's palette, which colour-blind readers can tell apart; groups differ in marker too
INK, MUTED, GRID = "#010101", "#999999", "#dddddd"  # pure black is SVG's default and would not be written out
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"
THEME = {"#000000": "--ink", INK: "--ink", MUTED: "--muted", GRID: "--grid", BLUE: "--blue", ORANGE: "--orange"}
THEME |= {GREEN: "--green", PURPLE: "--purple", SKY: "--sky", RED: "--red"}
"""Variables of the page that stand for each colour in an SVG."""

GROUPS = {
    "baseline": (INK, "s", "no LLM"),
    "untuned": (ORANGE, "^", "untuned LLM"),
    "tuned": (BLUE, "o", "tuned LLM"),
}
LINES = ((INK, "s"), (ORANGE, "^"), (BLUE, "o"), (GREEN, "D"), (PURPLE, "v"), (RED, "P"), (SKY, "X"), (MUTED, "*"))
"""Colour and marker of each row where several are drawn together."""


def plot_results(results: pa.Table, path: Path, *, data: str) -> None:
    """Write a PNG: NDCG@3 of each row as a dot, its bootstrap interval around it, the backbone as a line.

    The bar is the interval of the difference to the backbone, drawn from the backbone's value: one
    that crosses the line is a difference that could be none.

    Args:
        results: RESULTS.
        path: Where the PNG goes.
        data: What was ranked, for the title.
    """
    rows = ordered(results).to_pylist()
    with _figure(9.0, 1.9 + 0.34 * len(rows)) as figure:
        _draw_results(figure, rows, notes=True)
        figure.suptitle(f"NDCG@3 on {data}", x=0.01, ha="left", fontweight="bold")
        figure.savefig(path, dpi=150, metadata={"Software": None})


def results_svg(results: pa.Table) -> str:
    """The same picture without its text columns, for a page."""
    rows = ordered(results).to_pylist()
    with _figure(6.6, 1.2 + 0.27 * len(rows)) as figure:
        _draw_results(figure, rows, notes=False)
        return _svg(figure, "results", "NDCG@3 of every row with its interval; the table holds the same numbers")


def curves_svg(curves: Mapping[str, Floats]) -> str:
    """HR@k over k, a line per row."""
    with _figure(6.6, 3.7) as figure:
        axes = figure.subplots()
        for (row, values), (colour, marker) in zip(curves.items(), LINES, strict=False):
            ks = range(1, len(values) + 1)
            axes.plot(ks, values, color=colour, marker=marker, markersize=5, linewidth=1.6, label=_label(row))
        axes.set_xticks(range(1, max(len(values) for values in curves.values()) + 1))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("k", fontsize=9)
        axes.set_ylabel("HR@k over all test users", fontsize=9)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        _frame(axes, "top", "right")
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8.5)
        return _svg(figure, "curves", "Hit rate at 1 to k for the main rows")


def reliability_svg(bins: Mapping[str, Sequence[ReliabilityBin]]) -> str:
    """Share of targets over mean probability, a line per row; the diagonal is a probability that keeps its word."""
    with _figure(6.6, 4.4) as figure:
        axes = figure.subplots()
        end = 1.05 * max(max(one.mean_probability, one.observed_share) for row in bins.values() for one in row)
        axes.plot([0, end], [0, end], color=MUTED, linewidth=1.2, linestyle="--")
        for (row, found), (colour, marker) in zip(bins.items(), LINES, strict=False):
            points = [one.mean_probability for one in found], [one.observed_share for one in found]
            axes.plot(*points, color=colour, marker=marker, markersize=5, linewidth=1.6, label=_label(row))
        axes.set_xlim(0, end)
        axes.set_ylim(0, end)
        axes.set_xlabel("mean probability", fontsize=9)
        axes.set_ylabel("share that were the target", fontsize=9)
        axes.grid(color=GRID, linewidth=0.6)
        _frame(axes, "top", "right")
        figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8.5)
        return _svg(figure, "reliability", "Share of targets over mean probability; the table holds the summary")


def slices_svg(slices: pa.Table, rows: Sequence[str]) -> str:
    """NDCG@3 in every slice, a mark per row with the interval of its difference to the backbone."""
    lines = slices.to_pylist()
    names = list(dict.fromkeys((line["group"], line["slice"]) for line in lines))
    heights = _heights(names)
    values = {(line["group"], line["slice"], line["row"]): line for line in lines}
    with _figure(6.6, 1.1 + 0.42 * (max(heights.values()) + 1)) as figure:
        axes = figure.subplots()
        for at, (row, (colour, marker)) in enumerate(zip(rows, LINES, strict=False)):
            shift = 0.64 * ((at + 0.5) / len(rows) - 0.5)
            for name in names:
                base, line = values[*name, "backbone"]["ndcg_at_3"], values[*name, row]
                bounds = [base + line["difference_low"], base + line["difference_high"]]
                axes.plot(bounds, [heights[name] + shift] * 2, color=colour, linewidth=1.3, alpha=0.6)
            places = [heights[name] + shift for name in names]
            marks = [values[*name, row]["ndcg_at_3"] for name in names]
            axes.plot(marks, places, marker, color=colour, markersize=5, linestyle="", label=_label(row))
        _slice_labels(axes, names, heights, values)
        _frame(axes, "top", "right", "left")
        figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8.5)
        return _svg(figure, "slices", "NDCG@3 by group of users and targets; the table holds the same numbers")


def _heights(names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Where on the axis each slice stands: a heading's room before every group."""
    heights, at, last = {}, 0.0, None
    for name in names:
        at += 1.0 if name[0] == last else 1.9
        heights[name], last = at, name[0]
    return heights


def _slice_labels(axes: Any, names: list[tuple[str, str]], heights: Any, values: Any) -> None:
    for group in dict.fromkeys(name[0] for name in names):
        first = next(name for name in names if name[0] == group)
        where = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
        axes.annotate(group, (0.0, heights[first] - 0.85), fontsize=9, fontweight="bold", **where)
    labels = []
    for name in names:
        axes.axhspan(heights[name] - 0.42, heights[name] + 0.42, color=GRID, alpha=0.3, linewidth=0, zorder=0)
        line = values[*name, "backbone"]
        labels.append(f"{name[1]}\n{line['users_with_hit']:,} hits of {line['users']:,} users{' *' * line['few']}")
    axes.set_yticks([heights[name] for name in names], labels, fontsize=7.5)
    axes.set_ylim(max(heights.values()) + 0.6, 0.5)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_xlabel("NDCG@3", fontsize=9)
    axes.grid(axis="x", color=GRID, linewidth=0.6)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    """A figure that needs no display and no pyplot, in which names of rows are text and never formulas."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "recranker"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def _svg(figure: Any, name: str, description: str) -> str:
    """Inline SVG as wide as its place: the same bytes each time, ids of its own, the page's colours and font."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    opening = f'<svg role="img" aria-label="{description}" \\1>'
    text = re.sub(r'<svg (?:xmlns:xlink="[^"]*" )?width="[^"]*" height="[^"]*" ([^>]*)>', opening, text, count=1)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"(font: (?:\w+ )?[\d.]+px) [^;\"]*", r"\1 var(--font)", text)
    text = re.sub(r"#[0-9a-f]{6}", lambda found: f"var({THEME[found[0]]})" if found[0] in THEME else found[0], text)
    return text.replace("xlink:href", "href").replace('<text style="', '<text style="fill: var(--ink); ')


def _draw_results(figure: Any, rows: list[dict[str, Any]], *, notes: bool) -> None:
    axes = figure.subplots()
    base, edge = rows[0]["ndcg_at_3"], _right_edge(rows)
    axes.axvline(base, color=MUTED, linewidth=1.2, zorder=1)
    for place, row in enumerate(rows):
        colour, marker, _ = GROUPS[group_of(row["row"])]
        value, low, high = row["ndcg_at_3"], base + row["difference_low"], base + row["difference_high"]
        if value > edge:  # the oracle, often far beyond all others
            axes.plot(edge, place, ">", color=colour, markersize=8, clip_on=False)
        else:
            axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.55)
            axes.plot(value, place, marker, color=colour, markersize=7 if notes else 5.5, zorder=3)
        if notes:
            _note(axes, place, f"{value:.4f}", backbone_text(row, rows) if place else "grey line")
    if notes:
        _note(axes, -1, "NDCG@3", "against backbone, 95 %")
    _result_axes(axes, rows, edge)
    _legend(figure, rows)


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


def _result_axes(axes: Any, rows: list[dict[str, Any]], edge: float) -> None:
    axes.set_yticks(range(len(rows)), [_label(row["row"]) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # first row on top
    axes.set_xlim(min(0.0, axes.get_xlim()[0]), edge)
    axes.set_xlabel("NDCG@3; bars: 95 % interval of the difference to the backbone (line)", fontsize=9)
    users, hits = rows[0]["users"], rows[0]["users_with_hit"]
    title = f"mean over {users:,} test users; {hits:,} have their target among the candidates"
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    _frame(axes, "top", "right", "left")


def _frame(axes: Any, *hidden: str) -> None:
    axes.set_axisbelow(True)
    for side in hidden:
        axes.spines[side].set_visible(False)
    if "left" in hidden:
        axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=min(9, axes.get_yticklabels()[0].get_fontsize() if axes.get_yticklabels() else 9))


def _legend(figure: Any, rows: list[dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    present = {group_of(row["row"]) for row in rows}
    marks = [
        Line2D([], [], linestyle="", color=colour, marker=marker, label=text)
        for name, (colour, marker, text) in GROUPS.items()
        if name in present
    ]
    if _right_edge(rows) < max(row["ndcg_at_3"] for row in rows):
        marks.append(Line2D([], [], linestyle="", color=INK, marker=">", label="beyond the scale"))
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _label(row: str) -> str:
    return row.replace("_", " ")
