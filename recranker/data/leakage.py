"""The leakage gate: tables go in, and one clear error comes out when a held-out event got where it must not be.

Every check works on ids of whole columns. Each is one trap that has sunk a published or an earlier version of this
method; a test plants each leak and sees it caught.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.lookup import Pairs, column, index_in, opened, places
from recranker.errors import LeakageError

SPLITS = pa.array(["train", "validation", "test", "unused"])
TRAIN, VALIDATION, TEST, UNUSED = range(4)


def check_interactions(interactions: pa.Table, facts: Mapping[str, Any]) -> None:
    """Order, feedback, scale and split of the INTERACTIONS table agree with one another and with the facts.

    Args:
        interactions: Rows of ``schema.INTERACTIONS`` in any order.
        facts: ``rating_min, rating_max, like_at_least, dislike_below, has_time`` of the manifest of 'prepare'.

    Raises:
        LeakageError: Naming the trap, one user and item, and the way out.
    """
    table = interactions.sort_by([("user_id", "ascending"), ("sequence", "ascending")]).combine_chunks()
    repeated = np.zeros(table.num_rows, dtype=bool)
    repeated[Pairs.of(table["user_id"], table["item_id"]).repeated] = True
    _refuse(repeated, table, "an item stands twice in a history", "keep one interaction per user and item")
    users = index_in(table["user_id"], pc.unique(table["user_id"]))
    wrong = column(table["sequence"]) != places(users)
    _refuse(wrong, table, "sequence numbers of a user must be 0, 1, 2, ...", "number each user's events from the oldest")
    _check_time(table, users, has_time=bool(facts["has_time"]))
    _check_ratings(table, facts)
    _check_split(table, users)


def check_candidates(
    interactions: pa.Table, candidates: pa.Table, fit_events: pa.Table, facts: Mapping[str, Any]
) -> None:
    """No fit saw what its lists ask for, and no list gives its target away.

    Args:
        interactions: Rows of ``schema.INTERACTIONS``.
        candidates: Rows of ``schema.CANDIDATES``.
        fit_events: Rows of ``schema.FIT_EVENTS``.
        facts: ``rating_min, rating_max`` of the manifest of 'prepare'.

    Raises:
        LeakageError: Naming the trap, one user and item, and the way out.
    """
    interactions, candidates = interactions.combine_chunks(), candidates.combine_chunks()
    events = Pairs.of(interactions["user_id"], interactions["item_id"])
    _check_fits(interactions, events, fit_events)
    _check_out_of_fold(candidates, fit_events)
    _check_targets(interactions, events, candidates)
    _check_offers(interactions, events, candidates)
    _check_predicted_ratings(candidates, facts)


def check_prompts(
    interactions: pa.Table,
    candidates: pa.Table,
    prompts: pa.Table,
    *,
    template_hashes: Mapping[str, str] | None = None,
) -> None:
    """Prompts ask about their own list only, know no answer they must not know, and show items in shifted order.

    Args:
        interactions: Rows of ``schema.INTERACTIONS``.
        candidates: Rows of ``schema.CANDIDATES``.
        prompts: Rows of ``schema.PROMPTS``.
        template_hashes: Split -> digest of the template its prompts were made with; all must be equal.

    Raises:
        LeakageError: Naming the trap, one user and item, and the way out.
    """
    from recranker.data.prompt_leaks import Asked, check_answers, check_order

    check_templates(template_hashes or {})
    asked = Asked.of(candidates.combine_chunks(), prompts.combine_chunks())
    events = Pairs.of(interactions["user_id"], interactions["item_id"])
    check_answers(asked, events, splits_of(interactions))
    check_order(asked)
