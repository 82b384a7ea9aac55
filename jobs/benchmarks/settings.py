"""Settings of the benchmarks."""

from typing import Literal

from pydantic import Field, model_validator

from jobs.load.settings import HostSettings, RequestSettings
from jobs.settings import JobSettings, RaySettings, StoreSettings
from recranker.backbones.settings import BackboneSettings
from recranker.data.settings import DataSettings
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.sampling.settings import AdaptiveSampling, SamplingSettings
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


class TuningBenchmark(Settings):
    """Packed training against a full prompt for every question and against transformers' own Trainer."""

    data: DataSettings
    """Whose histories are trained on."""
    store: StoreSettings = StoreSettings()
    """Where downloads are kept, and what the stages before training make."""
    backbone: BackboneSettings = BackboneSettings()
    """Which candidates are asked about."""
    sampling: SamplingSettings = AdaptiveSampling()
    """Which users are drawn."""
    instruct: InstructSettings = InstructSettings()
    """What is asked."""
    llm: LLMSettings
    """The model."""
    tune: TuneSettings = TuneSettings()
    """The adapter, the loss and the optimizer's steps; workers and ZeRO stage are varied where those are timed."""
    ray: RaySettings = RaySettings()
    """The cluster that makes prompts and times ZeRO stages."""
    seed: int = 0
    """Of everything but what tune.seed says."""
    prompts: int = Field(default=4, ge=1)
    """Training prompts, the earliest draws; each is a handful of instructions."""
    rows: int = Field(default=2, ge=1)
    """Full prompts computed at once, where prompts are padded; 8 take 21 GB, and longer than 2 on a CPU."""
    trainer_steps: int = Field(default=1, ge=1)
    """Optimizer steps whose questions transformers' Trainer trains on, the first ones, all at the most."""
    zero: bool = True
    """Whether steps are timed under ZeRO stages too, which starts a Ray cluster and takes some minutes."""
    zero_stages: tuple[Literal[0, 1, 2, 3], ...] = Field(default=(0, 1, 2, 3), min_length=1)
    """ZeRO stages timed."""
    zero_workers: tuple[int, ...] = Field(default=(1, 2), min_length=1)
    """Numbers of workers that share the steps there."""
    zero_prompts: int = Field(default=4, ge=1)
    """The first of the prompts, which are trained on there."""

    @property
    def job(self) -> JobSettings:
        """The pipeline that makes the prompts."""
        tune = self.tune.model_copy(update={"max_prompts": self.prompts})
        parts = ("store", "data", "backbone", "sampling", "instruct", "llm", "ray", "seed")
        return JobSettings(name="benchmark-tuning", tune=tune, **{part: getattr(self, part) for part in parts})

    @property
    def training_seed(self) -> int:
        """Of the adapter's start and the order of prompts."""
        return self.tune.seed_in(self.seed)

    @model_validator(mode="after")
    def _ways_can_be_compared(self) -> "TuningBenchmark":
        if self.tune.adapters != "joint" or self.tune.lora.dropout:
            raise ValueError(
                "ways are compared on one adapter without chance, so tune.adapters must be 'joint' and "
                f"tune.lora.dropout 0, got {self.tune.adapters!r} and {self.tune.lora.dropout:g}"
            )
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


class ServingBenchmark(HostSettings):
    """The service under load, against the engine in one process and against a service that generates text."""

    cores: int | None = Field(default=None, ge=1)
    """Processes of one thread that show what the engine alone can do; None: as many as this process may use CPUs."""
    lone_requests: int = Field(default=30, ge=1)
    """Requests sent one at a time, after a few to warm up."""
    clients: int = Field(default=12, ge=1)
    """Who each wait for an answer before they ask again, to find out how much the service can answer."""
    saturation_s: float = Field(default=60.0, gt=0)
    """Seconds of that, and of the engine alone; a quarter of them before counting begins."""
    engine_batch: int = Field(default=4, ge=1)
    """Requests the engine alone is given at a time."""
    shared: bool = True
    """Whether the service is measured once more with replicas that all tasks share, one for each of the cores, where
    the tasks of the run have one adapter."""
    steady_shares: tuple[float, ...] = (0.5, 0.9)
    """Shares of what the service can answer at which requests arrive by themselves."""
    steady_s: float = Field(default=60.0, gt=0)
    """Seconds of each of these."""
    overload_times: float = Field(default=5.0, gt=1)
    """As many times what the service can answer arrive under overload."""
    overload_s: float = Field(default=120.0, ge=0)
    """Seconds of overload; 0: none."""
    deadline_times: float = Field(default=4.0, gt=0)
    """Deadline of a request under overload, as a multiple of the median time of a lone request."""
    grace_ms: float = Field(default=250.0, ge=0)
    """By which an answer may come after its deadline and still counts as kept: the way to the client and back."""
    generated_requests: int = Field(default=3, ge=0)
    """Requests that the service that generates text is given; 0: none, and it is not started."""
    generated_tokens: int = Field(default=2, ge=1)
    """Tokens it generates for each question: a word and the end of the turn."""
    soak_minutes: float = Field(default=0.0, ge=0)
    """Minutes of half of what the service can answer, while its memory is watched; 0: none."""


class InjectionBenchmark(RequestSettings):
    """Text in an item's title that asks to be ranked first, against harmless text of the same length."""

    users: int = Field(default=40, ge=2)
    """Published users; a candidate of each, drawn at random, gets one of the texts behind its title."""
    texts: tuple[str, ...] = Field(min_length=1)
    """What is put there, in turn."""
    samples: int = Field(default=10_000, ge=100)
    """Bootstrap resamples behind the intervals."""
