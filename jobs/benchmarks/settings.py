"""Settings of the benchmarks."""

from typing import Literal

from pydantic import Field, model_validator

from jobs.settings import StoreSettings
from recranker.data.settings import DataSettings
from recranker.llm.settings import LLMSettings
from recranker.settings import Settings
from recranker.tasks.settings import MAX_CANDIDATES, InstructSettings


class BackbonesBenchmark(Settings):
    """Our LightGCN and MF against RecBole's LightGCN and BPR and implicit's BPR."""

    data: DataSettings
    """Which data set is split and given to all systems."""
    store: StoreSettings = StoreSettings()
    """Where downloads are kept."""
    environment: str = ".venv-benchmark"
    """Virtual environment of the other systems, made by ``make benchmark-env``."""
    seed: int = 0
    """Of the split and of every system."""
    threads: tuple[int, ...] = Field(default=(1,), min_length=1)
    """Threads per system; one series of runs for each."""
    models: tuple[Literal["lightgcn", "mf"], ...] = ("lightgcn", "mf")
    """Which models are trained; none: only the search for top items is timed."""
    epochs: int = Field(default=200, ge=1)
    """Passes of every training over the likes; the best check counts."""
    check_every: int = Field(default=5, ge=1)
    """Epochs between two looks at validation, which no clock sees."""
    batch_size: int = Field(default=2048, ge=1)
    """Likes per step, the same everywhere (RecRanker: 2048)."""
    dim: int = Field(default=64, ge=2)
    """Width of the factors (RecRanker: 64)."""
    layers: int = Field(default=2, ge=1)
    """LightGCN's propagation layers (RecRanker: 2)."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Adam step size (RecRanker: 1e-3)."""
    l2: float = Field(default=1e-4, ge=0)
    """LightGCN's weight of the squared norm of a batch's embeddings, per like (RecRanker: 1e-4); MF's is 0."""
    own_defaults: bool = True
    """Whether recranker also trains with its own default settings."""
    target_share: float = Field(default=0.98, gt=0, le=1)
    """Share of the lower of both systems' best validation NDCG@10 that counts as 'as good'."""
    top_k_users: int = Field(default=6000, ge=1)
    """Users whose top 10 are searched."""
    top_k_items: int = Field(default=3700, ge=200)
    """Items they are searched among; 100 of them are masked for each user."""
    top_k_repeats: int = Field(default=3, ge=1)
    """Searches of each system; the median counts."""


class RankingBenchmark(Settings):
    """The ranking engine against full prompts and against generated text."""

    data: DataSettings
    """Whose users are ranked."""
    store: StoreSettings = StoreSettings()
    """Where downloads are kept."""
    llm: LLMSettings
    """The model, as it is; tuning changes no cost, as an adapter is merged."""
    instruct: InstructSettings
    """What is asked about ten candidates: RecRanker's 21 questions a user, over histories of 50 titles."""
    budgeted: InstructSettings
    """What is asked about more, and about ten for comparison: costs grow with the candidates, not their pairs."""
    seed: int = 0
    """Of the split, the users chosen and their questions."""
    users: int = Field(default=8, ge=1)
    """Users with a full history that the engine ranks."""
    slow_users: int = Field(default=3, ge=1)
    """The first of these that full prompts and longer lists are measured on, which take several times as long."""
    generated_users: int = Field(default=1, ge=1)
    """The first of these that texts are generated for, which takes longest."""
    candidates: tuple[int, ...] = Field(default=(10, 50, 200), min_length=1)
    """Lengths of the lists, 2 to 200."""
    trees: int = Field(default=1000, ge=1)
    """Random trees on which the engine is compared with every question asked alone."""

    @model_validator(mode="after")
    def _lists_can_be_ranked(self) -> "RankingBenchmark":
        if not all(2 <= one <= MAX_CANDIDATES for one in self.candidates):
            raise ValueError(f"candidates must be 2 to {MAX_CANDIDATES}, got {list(self.candidates)}")
        return self


class InstructionsBenchmark(Settings):
    """Sampling and instructions at scale, on a made-up service."""

    store: StoreSettings = StoreSettings()
    """Where downloads are kept."""
    scratch: str | None = None
    """Folder for the made-up service, about 5 GB for a million users; None: the system's temporary folder."""
    model: str
    """Whose tokenizer counts."""
    users: tuple[int, ...] = Field(min_length=1)
    """How many there are, one round of measuring for each."""
    items: int = Field(default=100_000, ge=320)
    """Items of the catalogue."""
    events_per_user: float = Field(default=50.0, ge=5)
    """Events of a user, about."""
    num_draws: int = Field(default=100_000, ge=1)
    """Draws, each of which becomes a prompt."""
    ranked_share: float = Field(default=0.01, ge=0, le=1)
    """Users with a validation and a test list, each of which becomes a prompt too."""
    seed: int = 0
    """Of everything made up."""
