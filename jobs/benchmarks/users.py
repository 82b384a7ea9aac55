"""Real users with long histories, their candidates from EASE, and the prompts that rank these."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from jobs.benchmarks.settings import RankingBenchmark
from recranker.backbones.candidates import FoldFits, Scale, describe, held_out_targets, make_offers
from recranker.backbones.events import Interactions, index_interactions
from recranker.backbones.fits import fit_closed_form
from recranker.backbones.folds import Fold, data_of
from recranker.backbones.rating_predictor import constant_ratings
from recranker.backbones.settings import EASESettings
from recranker.data.prepare import prepare
from recranker.errors import DataError
from recranker.randomness import key_of
from recranker.schema import DRAWS
from recranker.tasks.instructions import PromptBuilder, to_prompts
from recranker.tasks.protocol import Prompt, RatingScale
from recranker.tasks.settings import InstructSettings


class Users:
    """Test users of one data set whose histories are full."""

    def __init__(self, settings: RankingBenchmark, cache: Path) -> None:
        self.settings = settings
        self.interactions, items, facts = prepare(settings.data, settings.seed, cache)
        self.titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
        self.scale = Scale(facts["rating_min"], facts["rating_max"], facts["like_at_least"])
        likes = self.interactions.filter(pc.equal(self.interactions["feedback"], "like"))
        counts = likes.group_by("user_id").aggregate([([], "count_all")])
        long = counts.filter(pc.greater(counts["count_all"], settings.instruct.max_liked))["user_id"].to_pylist()
        tests = self.interactions.filter(pc.equal(self.interactions["split"], "test"))["user_id"].to_pylist()
        found = sorted(set(long) & set(tests), key=lambda user_id: (key_of(settings.seed, "users", user_id), user_id))
        if len(found) < settings.users:
            raise DataError(
                f"users={settings.users}, but only {len(found)} test users of these data have more than "
                f"instruct.max_liked={settings.instruct.max_liked} likes; ask for fewer of either"
            )
        self.user_ids = found[: settings.users]

    def prompts(self, num_candidates: int, asked: InstructSettings) -> list[Prompt]:
        """One per user, in the order of ``user_ids``."""
        rating_scale = RatingScale(self.scale.lowest, self.scale.highest)
        builder = PromptBuilder(self.titles, asked, rating_scale, self.settings.seed)
        events = self.interactions.filter(pc.is_in(self.interactions["user_id"], value_set=pa.array(self.user_ids)))
        made = builder.prompts(events, self._lists(num_candidates), DRAWS.schema.empty_table())
        return to_prompts(made.take(pc.index_in(pa.array(self.user_ids), value_set=made["user_id"].combine_chunks())))

    def titles_of(self, item_ids: Sequence[str]) -> list[str]:
        """Their titles."""
        return [self.titles[item_id] for item_id in item_ids]

    @cached_property
    def _indexed(self) -> Interactions:
        return index_interactions(self.interactions)

    @cached_property
    def _fits(self) -> FoldFits:
        """EASE on all training likes; no ratings are predicted."""
        full = Fold("full", self._indexed.rows("train"), self._indexed.rows("train")[:0])
        data = data_of(self._indexed, full)
        ratings = constant_ratings(data.num_users, data.num_items, self.scale.like)
        return FoldFits(full, data, fit_closed_form(data, EASESettings(), self.settings.seed), ratings, {})

    def _lists(self, num_candidates: int) -> pa.Table:
        """Test lists of EASE, whose order is quoted as the hint."""
        targets = held_out_targets(self._indexed, "test", validation_in_history=True)
        offers = make_offers(self._indexed, targets, self._fits, num_candidates=num_candidates)
        lists = describe(self._indexed, targets, self._fits, offers, self.scale).table
        lists = lists.filter(pc.is_in(lists["user_id"], value_set=pa.array(self.user_ids)))
        return lists.append_column("reranker_scores", lists["backbone_scores"])
