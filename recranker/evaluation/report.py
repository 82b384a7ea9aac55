"""One page that shows a run: its results, where they come from, and how sure they are."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from recranker.evaluation.beyond_accuracy import CUTOFFS
from recranker.evaluation.comparison import Comparison, hit_rate_curves, mean_reciprocal_ranks
from recranker.evaluation.evaluate import Evaluation
from recranker.evaluation.page import page
from recranker.evaluation.plots import curves_svg, reliability_svg, results_svg, slices_svg
from recranker.evaluation.reliability import Reliability
from recranker.evaluation.results import BAR_BOUNDS, among_hits, backbone_text, bar_text, ordered
from recranker.evaluation.rows import BAR, HYBRIDS, LEARNERS, METRICS, group_of, meaning_of
from recranker.evaluation.slices import FEW_HITS
from recranker.ranking.calibration import BINS
from recranker.ranking.utilities import TASKS

MAX_K = 10
"""Where the curve of HR@k ends."""

DIFFERENCE = ("difference_low", "difference_high")
HEADINGS = {"hr_at_3": "HR@3", "ndcg_at_3": "NDCG@3", "hr_at_5": "HR@5", "ndcg_at_5": "NDCG@5"}


@dataclass(frozen=True)
class Background:
    """What a page says of a run beside its results."""

    name: str
    """The run's."""
    served: str
    """The row that the headline is about."""
    facts: Mapping[str, Any]
    """What the data's manifest says of it."""
    settings: Mapping[str, Any]
    """The resolved settings that shape results."""
    bias: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Position bias by model; empty where no model was asked."""
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Learned fusion weights by name; empty where there is no fusion."""


def build_report(found: Evaluation, run: Background) -> str:
    """The page as HTML that needs nothing else."""
    rows = ordered(found.with_bar).to_pylist()
    sections = {
        "Results": _results(found, run.served),
        "NDCG@3": _figure(
            results_svg(found.results), "A bar that crosses the line is a difference that could be none."
        ),
        "Hit rate": _curves(found.comparison),
        "Slices": _slices(found),
        "Beyond accuracy": _beyond(found),
    }
    if found.reliability:
        sections["Calibration"] = _calibration(found.reliability, run.served)
    if run.weights:
        sections["Fusion"] = _fusion(run.weights)
    if run.bias:
        sections["Position bias"] = _position_bias(run.bias)
    sections |= {"Data": _data(run.facts), "Settings": _settings(run.settings)}
    return page(f"{escape(run.name)}: ranking results", _header(run, rows), sections)


def featured(rows: Iterable[str]) -> list[str]:
    """The few rows that are drawn together: backbone, conventional, and the hybrids or, without them, the learners."""
    present = list(rows)
    hybrids = [row for row in (*HYBRIDS[1:], HYBRIDS[0]) if row in present]
    return ["backbone", BAR, *(hybrids or [row for row in LEARNERS if row in present])[:2]]


def _header(run: Background, rows: list[dict[str, Any]]) -> str:
    served = next(row for row in rows if row["row"] == run.served)
    bar = next(row for row in rows if row["row"] == BAR)
    users, hits = served["users"], served["users_with_hit"]
    cards = [
        (f"{users:,}", "test users"),
        (f"{hits:,}", f"with their target retrieved ({hits / users:.1%}): the most any re-ranker can hit"),
        (f"{served['ndcg_at_3']:.4f}", f"NDCG@3 of {run.served}, all test users"),
        (f"{bar['ndcg_at_3']:.4f}", f"NDCG@3 of {BAR}, the hint alone"),
    ]
    boxes = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in cards
    )
    source = escape(str(run.facts.get("source", "data")))
    return (
        f"<h1>{escape(run.name)}</h1><p class=quiet>Ranking results on {source}</p>"
        f"<p class=headline>{_headline(served, rows)}</p><div class=cards>{boxes}</div>"
    )


def _headline(served: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """What was found, in a sentence or two that do not say more than the intervals do."""
    against = [f"{backbone_text(served, rows)} against the backbone's order, {_verdict(served, DIFFERENCE)}"]
    if served["row"] != BAR:
        against.append(f"{bar_text(served, rows)} against the conventional re-ranker, {_verdict(served, BAR_BOUNDS)}")
    return f"<b>{escape(served['row'])}</b>: NDCG@3 {escape('; '.join(against))}."


def _verdict(row: dict[str, Any], bounds: Sequence[str]) -> str:
    low, high = (row[bound] for bound in bounds)
    if low > 0:
        return "a gain"
    return "a loss" if high < 0 else "a difference that could be none"


def _results(found: Evaluation, served: str) -> str:
    ranks = mean_reciprocal_ranks(found.comparison)
    rows, hits = (ordered(one).to_pylist() for one in (found.with_bar, among_hits(found.with_bar)))
    scale = rows[0]["users"] / max(hits[0]["users"], 1)
    all_users = _results_table(rows, ranks, served)
    with_hit = _results_table(hits, {row: rank * scale for row, rank in ranks.items()}, served)
    return (
        '<p class="quiet">Differences are in NDCG@3, with 95 % paired bootstrap intervals over users; '
        "coloured where the interval excludes zero. "
        f"<b>{BAR}</b> is the honest bar: its order is the hint in the prompts.</p>"
        '<div class="switch"><input type="radio" name="protocol" id="all" checked>'
        f'<label for="all">All {rows[0]["users"]:,} test users</label>'
        '<input type="radio" name="protocol" id="hits">'
        f'<label for="hits">The {hits[0]["users"]:,} with a hit</label>'
        f'<div class="panel all">{all_users}</div><div class="panel hits">{with_hit}</div></div>'
        f"<details><summary>What the rows are</summary>{_definitions(_meanings(rows))}</details>"
    )


def _meanings(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["row"], meaning_of(row["row"])) for row in rows if meaning_of(row["row"])]


def _results_table(rows: list[dict[str, Any]], ranks: Mapping[str, float], served: str) -> str:
    headings = ["ranker", *HEADINGS.values(), "MRR", "against backbone", f"against {BAR}"]
    lines = []
    for row in rows:
        cells = [_number(row[metric]) for metric in METRICS] + [_number(ranks[row["row"]])]
        cells.append(_gain(backbone_text(row, rows), row, "backbone", rows, DIFFERENCE))
        cells.append(_gain(bar_text(row, rows), row, BAR, rows, BAR_BOUNDS))
        style = "served" if row["row"] == served else group_of(row["row"])
        lines.append(f'<tr class="{style}">{_row_head(row["row"])}{"".join(cells)}</tr>')
    return _table(headings, lines)


def _gain(text: str, row: dict[str, Any], baseline: str, rows: list[dict[str, Any]], bounds: Sequence[str]) -> str:
    base = next(one["ndcg_at_3"] for one in rows if one["row"] == baseline)
    low, high = (row[bound] for bound in bounds)
    style = "up" if low > 0 else "down" if high < 0 else "flat"
    return f'<td class="{style}" data-value="{row["ndcg_at_3"] - base:.9g}">{escape(text)}</td>'


def _curves(comparison: Comparison) -> str:
    longest = int(comparison.lists.lengths.max(initial=1))
    curves = hit_rate_curves(comparison, max_k=min(MAX_K, longest))
    shown = {row: curves[row] for row in (*featured(curves), "popularity", "random")}
    caption = "Share of all test users whose target is among the first k. All rows meet where the list ends."
    lines = [
        f"<tr>{_row_head(row)}{''.join(_number(value) for value in values)}</tr>" for row, values in curves.items()
    ]
    table = _table(["ranker", *(f"HR@{k + 1}" for k in range(len(curves["backbone"])))], lines)
    return _figure(curves_svg(shown), caption) + f"<details><summary>All rows as numbers</summary>{table}</details>"


def _slices(found: Evaluation) -> str:
    caption = (
        "NDCG@3 within groups of test users; the bar is the 95 % interval of the difference to the backbone, users of "
        f"the group resampled. A star marks fewer than {FEW_HITS} users with a hit: too few to conclude anything from."
    )
    headings = ["row", "group", "slice", "users", "with a hit", "NDCG@3", "against backbone", "low", "high", "note"]
    lines = []
    for line in found.slices.to_pylist():
        texts = "".join(f'<td class="text">{escape(line[name])}</td>' for name in ("group", "slice"))
        counts = "".join(f'<td data-value="{line[name]}">{line[name]:,}</td>' for name in ("users", "users_with_hit"))
        values = "".join(
            _number(line[name]) for name in ("ndcg_at_3", "difference", "difference_low", "difference_high")
        )
        note = f'<td class="text">{"few users" if line["few"] else ""}</td>'
        lines.append(f"<tr>{_row_head(line['row'])}{texts}{counts}{values}{note}</tr>")
    figure = _figure(slices_svg(found.slices, featured(found.comparison.values)), caption)
    return figure + f"<details><summary>All rows as numbers</summary>{_table(headings, lines)}</details>"


def _beyond(found: Evaluation) -> str:
    names = {"coverage": "coverage", "novelty": "novelty", "diversity": "diversity", "lift": "popularity_lift"}
    headings = ["ranker", *(f"{name}@{k}" for name in names for k in CUTOFFS)]
    by_row: dict[str, dict[int, dict[str, float]]] = {}
    for line in found.beyond.to_pylist():
        by_row.setdefault(line["row"], {})[line["k"]] = line
    lines = [
        f"<tr>{_row_head(row)}{''.join(_number(by_k[k][column], 3) for column in names.values() for k in CUTOFFS)}</tr>"
        for row, by_k in by_row.items()
    ]
    explained = [
        ("coverage", "share of the catalogue that is in at least one list's top k; grows with the number of lists"),
        ("novelty", "mean of -log2 of the share of training users who like the item, bits"),
        ("diversity", f"mean Jaccard distance of {found.features_are} between two items of one list"),
        ("lift", "popularity of items shown against users' own likes, in training likes: 0 = as popular, 1 = twice"),
    ]
    lists = found.beyond["lists"][0].as_py()
    said = f"Over the {lists:,} lists that every row has ranked. random is one keyed shuffle."
    return f'<p class="quiet">{said}</p>{_table(headings, lines)}{_definitions(explained)}'


def _calibration(found: Mapping[str, Reliability], served: str) -> str:
    """A line in the picture for each task and the row served; all rows in the table."""
    drawn = {row: found[row].bins for row in (*TASKS, served) if row in found}
    caption = f"Items in up to {BINS} bins of equal size by probability. On the dashed line what was said is what came."
    headings = ["ranker", "ECE", "Brier score", "Brier score of 1 / n", "lists"]
    lines = []
    for row, one in found.items():
        numbers = "".join(_number(value) for value in (one.ece, one.brier, one.uninformed))
        count = f'<td data-value="{one.num_lists}">{one.num_lists:,}</td>'
        lines.append(f"<tr>{_row_head(row)}{numbers}{count}</tr>")
    explained = [
        ("ECE", "mean distance between the two axes, by bin; above 0 even for true probabilities if lists are few"),
        ("Brier score", "mean squared distance of probability and outcome; lower is better"),
        ("1 / n", "the same chance for each of a list's n candidates: what no knowledge would say"),
    ]
    said = (
        "How far the probability that an item is the one liked next can be taken at its word, given that one of the "
        "list is: over test lists that hold their target. Learned on validation lists."
    )
    figure = _figure(reliability_svg(drawn or {row: one.bins for row, one in found.items()}), caption)
    return f'<p class="quiet">{said}</p>{figure}{_table(headings, lines)}{_definitions(explained)}'


def _fusion(weights: Mapping[str, Mapping[str, float]]) -> str:
    largest = max((abs(value) for one in weights.values() for value in one.values()), default=0.0) or 1.0
    parts = []
    for row, one in weights.items():
        parts.append(f"<h3>{escape(row)}</h3>")
        for name, value in one.items():
            width = f"width: {100 * abs(value) / largest:.1f}%"
            parts.append(f'<span>{escape(name)}</span><span><i style="{width}"></i></span><span>{value:.3f}</span>')
    said = "Weights of the signals' z-scores, learned on validation lists. A weight of 0 leaves its signal out."
    return f'<p class="quiet">{said}</p><div class="bars">{"".join(parts)}</div>'


def _position_bias(bias: Mapping[str, Mapping[str, float]]) -> str:
    explained = {
        "first_slot_rate": "share of lists whose first place is the likeliest answer",
        "first_slot_chance": "what that share would be without bias",
        "kendall_tau": "agreement of two rankings of a list shuffled differently; 1 = the shuffle does not matter",
        "pair_agreement": "share of pairs for which both orders prefer the same item",
        "pair_first_rate": "share of pairs that prefer the item shown first; 0.5 = no bias",
    }
    said = "How much an answer depends on where an item was shown. The mark is what no bias would give."
    ideal = {"kendall_tau": 1.0, "pair_agreement": 1.0, "pair_first_rate": 0.5}
    parts = []
    for model, values in bias.items():
        parts.append(f"<h3>{escape(model)}</h3>")
        for name in (name for name in explained if name in values and name != "first_slot_chance"):
            mark = ideal.get(name, values.get("first_slot_chance", 0.0))
            width = 100 * min(max(values[name], 0.0), 1.0)
            rail = f'<i style="width: {width:.1f}%"></i><u style="left: {100 * mark:.1f}%"></u>'
            parts.append(f'<span>{_words(name)}</span><span class="rail">{rail}</span><span>{values[name]:.3f}</span>')
    words = _definitions([(_words(name), text) for name, text in explained.items()])
    return f'<p class="quiet">{said}</p><div class="bars">{"".join(parts)}</div>{words}'


def _data(facts: Mapping[str, Any]) -> str:
    counts = _flat(facts.get("counts", {}))
    others = _flat({name: value for name, value in facts.items() if name != "counts"})
    lines = [f"<tr>{_row_head(_words(name))}<td>{escape(text)}</td></tr>" for name, text in counts]
    table = _table(["step", "count"], lines) if lines else ""
    return _definitions([(_words(name), text) for name, text in others]) + table


def _settings(settings: Mapping[str, Any]) -> str:
    text = escape(json.dumps(settings, indent=2, ensure_ascii=False))
    summary = "<summary>Resolved settings that shape these results</summary>"
    return f'<details>{summary}<pre tabindex="0">{text}</pre></details>'


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(headings: Sequence[str], lines: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "\n".join(lines)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table class="sortable">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row_head(row: str) -> str:
    return f'<th scope="row">{escape(row)}</th>'


def _number(value: float, digits: int = 4) -> str:
    return f'<td data-value="{value:.9g}">{value:.{digits}f}</td>'


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in pairs)}</dl>"


def _flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Names and texts of all that a manifest's facts hold, however deep."""
    if isinstance(values, Mapping):
        return [pair for name, value in values.items() for pair in _flat(value, f"{prefix} {name}".strip())]
    if isinstance(values, bool) or values is None:
        return [(prefix, {True: "yes", False: "no", None: "none"}[values])]
    if isinstance(values, list):
        return [(prefix, ", ".join(str(value) for value in values))]
    return [(prefix, f"{values:,}" if isinstance(values, int) else str(values))]


def _words(name: str) -> str:
    return name.replace("_", " ")
