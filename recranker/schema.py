"""The tables that pass between stages: one Arrow schema each, one sentence per column.

``SCHEMA_VERSION`` stands in every manifest; raise it when a column changes its meaning.
"""

from dataclasses import dataclass

import pyarrow as pa

from recranker.errors import DataError

SCHEMA_VERSION = 1

STRINGS = pa.list_(pa.string())
FLOATS = pa.list_(pa.float32())


@dataclass(frozen=True)
class TableSchema:
    """Name, columns and key of one table."""

    name: str
    key: tuple[str, ...]
    schema: pa.Schema

    def check(self, found: pa.Schema, *, where: str) -> None:
        """Compare ``found`` with what this table needs; column order and extra metadata do not matter.

        Raises:
            DataError: If a column is missing, unknown, or of another type.
        """
        names = ", ".join(found.names)
        for field in self.schema:
            if field.name not in found.names:
                raise DataError(f"{where}: table '{self.name}' lacks column '{field.name}' (found: {names})")
            came = found.field(field.name).type
            if came != field.type:
                raise DataError(
                    f"{where}: column '{field.name}' of table '{self.name}' must be {field.type}, got {came}"
                )
        unknown = [name for name in found.names if name not in self.schema.names]
        if unknown:
            raise DataError(f"{where}: table '{self.name}' has unknown columns {unknown}; known: {self.schema.names}")

    def conform(self, table: pa.Table, *, where: str) -> pa.Table:
        """``table`` with its columns in order and its nulls checked.

        Raises:
            DataError: If the schema differs or a column that must be full holds a null.
        """
        self.check(table.schema, where=where)
        table = table.select(self.schema.names)
        for field in self.schema:
            nulls = table.column(field.name).null_count
            if nulls and not field.nullable:
                raise DataError(f"{where}: column '{field.name}' of table '{self.name}' holds {nulls} nulls")
        return table.cast(self.schema)


def _column(name: str, kind: pa.DataType, sentence: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": sentence})


def _table(name: str, key: tuple[str, ...], *columns: pa.Field) -> TableSchema:
    return TableSchema(name, key, pa.schema(columns))


INTERACTIONS = _table(
    "interactions",
    ("user_id", "sequence"),
    _column("user_id", pa.string(), "The data set's own key of the user."),
    _column("item_id", pa.string(), "The data set's own key of the item."),
    _column(
        "rating", pa.float32(), "On the scale the manifest states; null where feedback is implicit.", nullable=True
    ),
    _column("timestamp", pa.int64(), "UTC seconds; null where the source has no time.", nullable=True),
    _column("sequence", pa.int32(), "Place in the user's history, 0 = oldest."),
    _column("feedback", pa.string(), "'like', 'neutral' or 'dislike'."),
    _column(
        "split", pa.string(), "'train', 'validation', 'test', or 'unused' (after the validation like, not a target)."
    ),
)

HISTORIES = _table(
    "histories",
    ("user_id",),
    _column("user_id", pa.string(), "The data set's own key of the user."),
    _column("item_ids", STRINGS, "What the user met, oldest first."),
    _column("feedback", STRINGS, "'like', 'neutral' or 'dislike', of each."),
    _column("sequences", pa.list_(pa.int32()), "Place of each in the user's whole history, ascending."),
)
"""INTERACTIONS as one row per user; no stage publishes it."""

ITEMS = _table(
    "items",
    ("item_id",),
    _column("item_id", pa.string(), "The data set's own key of the item."),
    _column("title", pa.string(), "Cleaned title; not necessarily distinct."),
    _column("genres", STRINGS, "Genres or categories; empty where unknown."),
)

USER_FACTORS = _table(
    "user_factors",
    ("user_id",),
    _column("user_id", pa.string(), "The data set's own key of the user."),
    _column("factors", FLOATS, "The user's embedding in the retriever fitted on all training likes."),
)

FIT_EVENTS = _table(
    "fit_events",
    ("fold", "user_id", "item_id"),
    _column("fold", pa.string(), "Which fit saw the event: 'full' or 'rolled_back'."),
    _column("user_id", pa.string(), "Who."),
    _column("item_id", pa.string(), "What; the leakage gate looks for targets here."),
)

CANDIDATES = _table(
    "candidates",
    ("list_id",),
    _column("list_id", pa.string(), "split/user_id/target_id; one list per target."),
    _column("user_id", pa.string(), "For whom."),
    _column("split", pa.string(), "'train', 'validation' or 'test'."),
    _column("target_id", pa.string(), "The held-back like this list is meant to find."),
    _column("target_rating", pa.float32(), "The rating of the target; null where implicit.", nullable=True),
    _column("hit", pa.bool_(), "Whether the target is among the candidates."),
    _column("before", pa.int32(), "The history ends before this sequence number."),
    _column("fold", pa.string(), "The fit the scores come from: 'full' or 'rolled_back'."),
    _column("candidate_ids", STRINGS, "The retriever's top items, best first."),
    _column("backbone_scores", FLOATS, "The retriever's score of each candidate."),
    _column("predicted_ratings", FLOATS, "The rating predictor's guess for each candidate, on the data's scale."),
    _column("popularity", FLOATS, "Training likes of each candidate within the same fold."),
    _column(
        "reranker_scores",
        FLOATS,
        "The conventional re-ranker's logits; in training lists without the user's own lists.",
    ),
)

SIGNALS = _table(
    "signals",
    ("list_id", "signal"),
    _column("list_id", pa.string(), "The candidate list scored."),
    _column("signal", pa.string(), "Which other backbone or conventional re-ranker scored it."),
    _column("scores", FLOATS, "Its score of each candidate, in the order of the list; out of fold in training lists."),
)

DRAWS = _table(
    "draws",
    ("draw_id",),
    _column("draw_id", pa.int64(), "Place of this draw in order of arrival, 0 = first."),
    _column("user_id", pa.string(), "The user drawn."),
    _column("repeat", pa.int32(), "How often this user had been drawn before."),
)

QUESTION = pa.struct(
    [
        pa.field("task", pa.string()),
        pa.field("text", pa.string()),
        pa.field("labels", STRINGS),
        pa.field("item_ids", STRINGS),
        pa.field("answer", pa.string()),
        pa.field("soft_labels", FLOATS),
        pa.field("round", pa.int8()),
        pa.field("tokens", pa.int32()),
    ]
)

PROMPTS = _table(
    "prompts",
    ("prompt_id",),
    _column("prompt_id", pa.string(), "split/draw_id for training, the list_id otherwise."),
    _column("list_id", pa.string(), "The candidate list asked about."),
    _column("user_id", pa.string(), "For whom."),
    _column("split", pa.string(), "'train', 'validation' or 'test'."),
    _column("prefix", pa.string(), "What all questions share: instructions and history."),
    _column(
        "questions",
        pa.list_(QUESTION),
        "Task, text, labels, items; in training the right label and the teacher's probabilities; the round, above 0 "
        "where it is asked only if the rounds before left the order unsettled; tokens with the end of the chat frame.",
    ),
    _column(
        "prefix_tokens",
        pa.int32(),
        "Tokens of the prefix with the beginning of the chat frame, uncut; null, as those of questions, where nobody "
        "has counted.",
        nullable=True,
    ),
)

QUARANTINE = _table(
    "quarantine",
    ("row_id", "reason"),
    _column("row_id", pa.string(), "The input row that could not be used."),
    _column("reason", pa.string(), "Why, in a few words."),
)

TRAINING_LOG = _table(
    "training_log",
    ("adapter", "step"),
    _column("adapter", pa.string(), "'joint' or the task."),
    _column("step", pa.int32(), "Optimizer step, 1 = first."),
    _column("loss", pa.float32(), "Mean over the step's questions, nats."),
    _column("gradient_norm", pa.float32(), "Euclidean norm of the gradient before it was clipped."),
    _column("prompt_ids", STRINGS, "The step's prompts, in the order drawn."),
    _column("learning_rate", pa.float32(), "After warm-up and decay."),
    _column("tokens", pa.int64(), "Tokens computed since the start, all workers."),
)

ANSWER = pa.struct(
    [
        pa.field("task", pa.string()),
        pa.field("item_ids", STRINGS),
        pa.field("log_probabilities", FLOATS),
        pa.field("round", pa.int8()),
    ]
)

ANSWERS = _table(
    "answers",
    ("list_id", "model"),
    _column("list_id", pa.string(), "The candidate list asked about."),
    _column("user_id", pa.string(), "For whom."),
    _column("split", pa.string(), "'validation' or 'test'."),
    _column("model", pa.string(), "'tuned', 'untuned', or 'untuned_no_hint' (asked without hints)."),
    _column(
        "answers",
        pa.list_(ANSWER),
        "One per question asked: log-probabilities of its labels, in nats, summing to 1; the question's round.",
    ),
    _column("prompt_tokens", pa.int32(), "Tokens computed for this list, all rounds and adapters together."),
    _column("cut_lines", pa.int32(), "Lines of history left out because the prompt was too long, the oldest likes."),
)

RANKINGS = _table(
    "rankings",
    ("list_id", "row"),
    _column("list_id", pa.string(), "The candidate list ranked."),
    _column("user_id", pa.string(), "For whom."),
    _column("split", pa.string(), "'validation' or 'test'."),
    _column("row", pa.string(), "The ranker, as named in the results table."),
    _column("item_ids", STRINGS, "The candidates, best first."),
    _column("scores", FLOATS, "The score of each, highest first."),
    _column(
        "probabilities",
        FLOATS,
        "That each is the one liked next, given that one of the list is; null where the ranker was not calibrated.",
        nullable=True,
    ),
)

RESULTS = _table(
    "results",
    ("row",),
    _column("row", pa.string(), "The ranker."),
    _column("hr_at_3", pa.float64(), "Share of test users whose target is in the top 3."),
    _column("ndcg_at_3", pa.float64(), "NDCG of the top 3, all test users."),
    _column("hr_at_5", pa.float64(), "Share of test users whose target is in the top 5."),
    _column("ndcg_at_5", pa.float64(), "NDCG of the top 5, all test users."),
    _column("difference_low", pa.float64(), "2.5 % bound of NDCG@3 minus the backbone's, paired bootstrap over users."),
    _column("difference_high", pa.float64(), "97.5 % bound of the same."),
    _column("users", pa.int64(), "Test users: the denominator."),
    _column("users_with_hit", pa.int64(), "Of these, users whose target is among the candidates."),
)

USER_RESULTS = _table(
    "user_results",
    ("row", "user_id"),
    _column("row", pa.string(), "The ranker."),
    _column("user_id", pa.string(), "A test user with a hit; every other test user is 0 in every metric of every row."),
    _column("hr_at_3", pa.float32(), "1 where the target is in the top 3."),
    _column("ndcg_at_3", pa.float32(), "NDCG of the top 3."),
    _column("hr_at_5", pa.float32(), "1 where the target is in the top 5."),
    _column("ndcg_at_5", pa.float32(), "NDCG of the top 5."),
)

TABLES_OF: dict[str, tuple[TableSchema, ...]] = {
    "prepare": (INTERACTIONS, ITEMS),
    "backbone": (CANDIDATES, SIGNALS, USER_FACTORS, FIT_EVENTS),
    "sample": (DRAWS,),
    "instruct": (PROMPTS, QUARANTINE),
    "tune": (TRAINING_LOG,),
    "rank": (ANSWERS, RANKINGS),
    "evaluate": (RESULTS, USER_RESULTS),
}
"""What each stage publishes, in the order of the data's way."""
