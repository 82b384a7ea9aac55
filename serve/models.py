"""The tuned models that a task's replica holds: the one that answers, and another that is about to, or competes.

A model is loaded beside the one that answers, in a thread, and counts once it has reproduced its adapter's golden
answers. At most two are held. Who asks names the model, so a replica answers with the right one whatever it was told
last, and loads it then if it must.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from recranker.errors import RecrankerError, first_line
from recranker.llm.adapter import check_adapter, load_tuned
from recranker.llm.model import LanguageModel, merge_adapter, release_memory, resolve_model
from recranker.llm.scoring import TreeScorer, make_scorer
from recranker.llm.tuned import adapter_for
from recranker.tasks.prefix import build_prefix
from recranker.tasks.protocol import Candidate, Prompt
from recranker.tasks.settings import TaskName
from serve.batching import Batcher
from serve.cost import measure
from serve.ranking import questions_of
from serve.settings import ServeSettings
from serve.source import ServedRun, read_wanted, run_at
from serve.wanted import ModelKey, Prepared, RefusedRunError, Wanted, refusing, without_frames

logger = logging.getLogger("ray.serve")  # the one that Serve writes to the replica's log

MOST = 2
"""Models held at once."""
AGAIN_S = 30.0
"""Seconds after which a model that was refused is tried again if it is still asked for."""
PROBE = (Candidate("a", "A", 1), Candidate("b", "B", 2))
LONG_LIST = tuple(Candidate(str(place), f"The Title of Item {place} (1990)", place) for place in range(1, 5))
LONG_HISTORY = tuple(f"The Title of a Liked Item {place} (1990)" for place in range(8))
"""What makes the second prompt several times as long as the first, where costs are measured."""


@dataclass
class Loaded:
    """A model that has reproduced its golden answers."""

    run: ServedRun
    scorer: TreeScorer
    probe: Prompt
    """A tiny one, for health checks."""
    batcher: Batcher
    """What requests go through."""
    touched: float = field(default_factory=time.monotonic)
    """When it was last asked for, in seconds of ``time.monotonic``."""


Load = Callable[[TaskName, ServedRun, ServeSettings, asyncio.Lock], Loaded]
"""Loads the run's model for a task; the lock is held by whichever model of the replica computes."""


@dataclass(frozen=True)
class _Refused:
    error: RefusedRunError
    at: float


class Models:
    """The models of one replica; used from one event loop.

    Args:
        task: That they answer.
        bound: The run that the application was built with.
        settings: Of the service.
        load: What loads one; runs in a thread.
    """

    def __init__(
        self,
        task: TaskName,
        bound: ServedRun,
        settings: ServeSettings,
        load: Load | None = None,
    ) -> None:
        self.task = task
        self.bound = bound
        self.settings = settings
        self.engine = asyncio.Lock()
        self._load = load or measured_model
        self._held: dict[ModelKey, Loaded] = {}
        self._loading: dict[ModelKey, asyncio.Task[Loaded | RefusedRunError]] = {}
        self._refused: dict[ModelKey, _Refused] = {}
        self._one_at_a_time = asyncio.Lock()
        self._answers: ModelKey | None = None
        self._challenger: ModelKey | None = None
        self._wanted: ModelKey | None = None
        self._handover: str | None = None
        self._following: asyncio.Task[bool] | None = None

    async def get(self, key: ModelKey | None = None) -> Loaded:
        """The model to answer with, once it is loaded.

        Args:
            key: Which; None is the one that answered last.

        Raises:
            RefusedRunError: If it cannot be used.
        """
        key = key or self._answers or self._wanted or self.bound.key
        found = await self._there(key)
        if isinstance(found, RefusedRunError):
            raise found
        self._answers, found.touched = key, time.monotonic()
        return found

    def beside(self, key: ModelKey) -> Loaded | None:
        """The model if it is there; else None, and it is loaded as soon as there is room for it beside the others."""
        self._challenger = key
        found = self._held.get(key)
        if found is not None:
            found.touched = time.monotonic()
        elif len(self._held) + len(self._loading) < MOST and not self._lately_refused(key):
            self._begun(key)
        return found

    def prepare(self, key: ModelKey, handover: str) -> Prepared:
        """How far the model is; begins to load it where nobody has in this handover."""
        self._forget_refusals_before(handover)
        if key in self._held:
            return Prepared("ready")
        refused = self._lately_refused(key)
        if refused is None:
            self._begun(key)
            return Prepared("loading")
        return Prepared("refused", refused.code)

    async def follow(self, user_config: Any) -> None:
        """Make the model of the run ready that ``user_config`` names, at once where none is held, else beside it.

        Raises:
            RefusedRunError: If none is held, and nothing that could be served can be loaded.
        """
        try:
            wanted = Wanted.model_validate(user_config)
        except ValidationError:  # the router says so
            return
        if self._following is not None:
            self._following.cancel()
        self._forget_refusals_before(wanted.handover)
        if not self._held:
            await self._first_of(wanted)
        else:
            self._following = asyncio.create_task(self._fetch(wanted))

    async def health(self) -> Loaded:
        """The model that a health check asks; lets those go that nobody has asked for longer than any request lasts.

        A challenger stays, as its next request may be long in coming.

        Raises:
            RefusedRunError: If there is none.
        """
        now = time.monotonic()
        for key, one in list(self._held.items()):
            idle = now - one.touched > self.settings.request_timeout_s
            if idle and key not in (self._answers, self._wanted, self._challenger):
                self._let_go(key)
        for known in (self._answers, self._wanted, *self._held):
            if known in self._held:
                return self._held[known]
        return await self.get()

    @property
    def held(self) -> tuple[ModelKey, ...]:
        """The models that are loaded."""
        return tuple(self._held)

    async def _first_of(self, wanted: Wanted) -> None:
        """What a new replica starts with: the first that can be used of those wanted, and what it was built with."""
        tried: Wanted | None = wanted
        while tried is not None:
            if await self._fetch(tried):
                return
            tried = tried.otherwise
        await self.get(self.bound.key)

    async def _fetch(self, wanted: Wanted) -> bool:
        """Whether the wanted run's model is loaded now."""
        try:
            run = await asyncio.to_thread(read_wanted, wanted, self.settings)
        except RecrankerError as error:
            logger.warning("task %s: refused a run: %s", self.task, first_line(error))
            return False
        self._wanted = run.key
        return isinstance(await self._there(run.key, run), Loaded)

    async def _there(self, key: ModelKey, run: ServedRun | None = None) -> Loaded | RefusedRunError:
        """The model, or why it cannot be used; who waits for its load may go away without ending it."""
        held = self._held.get(key)
        return held if held is not None else await asyncio.shield(self._begun(key, run))

    def _begun(self, key: ModelKey, run: ServedRun | None = None) -> "asyncio.Task[Loaded | RefusedRunError]":
        """The load of a model, begun where nobody has."""
        if key not in self._loading:
            refused = self._lately_refused(key)
            load = _already(refused) if refused else self._loaded(key, run)
            self._loading[key] = asyncio.create_task(load)
            self._loading[key].add_done_callback(lambda _: self._loading.pop(key, None))
        return self._loading[key]

    async def _loaded(self, key: ModelKey, run: ServedRun | None) -> Loaded | RefusedRunError:
        async with self._one_at_a_time:
            self._make_room()
            started = time.monotonic()
            try:
                found = await asyncio.to_thread(self._read_and_load, key, run)
            except RefusedRunError as error:
                logger.warning("task %s: model refused, %s: %s", self.task, error.code, first_line(error))
                self._refused[key] = _Refused(without_frames(error), time.monotonic())
                release_memory()
                return error
            found.touched = time.monotonic()
            logger.info("task %s: model of run %s loaded in %.1f s", self.task, found.run.name, found.touched - started)
            self._held[key] = found
            return found

    def _read_and_load(self, key: ModelKey, run: ServedRun | None) -> Loaded:
        if run is None:
            with refusing("not_readable"):
                run = self.bound if key == self.bound.key else run_at(*key)
        return self._load(self.task, run, self.settings, self.engine)

    def _make_room(self) -> None:
        """Let the model go that was asked for longest ago, never the one that answers."""
        while len(self._held) >= MOST:
            spare = [key for key in self._held if key != self._answers]
            self._let_go(min(spare, key=lambda key: (key == self._wanted, self._held[key].touched)))

    def _let_go(self, key: ModelKey) -> None:
        logger.info("task %s: model of run %s let go", self.task, self._held.pop(key).run.name)
        release_memory()

    def _forget_refusals_before(self, handover: str) -> None:
        """Whoever asks anew may have mended what was broken."""
        if handover != self._handover:
            self._handover = handover
            self._refused.clear()

    def _lately_refused(self, key: ModelKey) -> RefusedRunError | None:
        found = self._refused.get(key)
        return found.error if found and time.monotonic() - found.at < AGAIN_S else None


def verified_model(task: TaskName, run: ServedRun, cache: Path) -> LanguageModel:
    """The run's model for ``task``, its adapter merged, once it has reproduced its golden answers.

    Args:
        task: That it answers.
        run: Whose it is.
        cache: Folder of downloaded and converted models.

    Raises:
        RefusedRunError: If a file is missing or broken, or the answers differ.
    """
    with refusing("not_readable"):
        folder = adapter_for(run.adapters, task)
    with refusing("not_loaded"):
        lm = load_tuned(resolve_model(run.llm.model, cache), folder, run.llm)
        merge_adapter(lm)  # before the check, so that what is checked is what answers
    with refusing("golden_answers"):
        difference = check_adapter(lm, folder, run.llm)
    logger.info("task %s: golden answers reproduced within %.1g nats on %s", task, difference, lm.device)
    return lm


def measured_model(task: TaskName, run: ServedRun, settings: ServeSettings, engine: asyncio.Lock) -> Loaded:
    """The run's model for ``task``, verified, and what its prompts cost.

    Replicas without a GPU of their own score on the CPU wherever they run: Ray hides no GPUs from them.

    Raises:
        RefusedRunError: If it cannot be used.
    """
    if not settings.replicas_of(task).gpus:
        run = replace(run, llm=run.llm.model_copy(update={"device": "cpu"}))
    lm = verified_model(task, run, settings.cache)
    scorer = make_scorer(lm, run.llm)
    probe = Prompt("health", build_prefix([], [], run.templates), questions_of(PROBE, run, task)[:1])
    with refusing("not_loaded"):
        cost = measure(
            scorer.score_with_cost,
            probe,
            Prompt("cost", build_prefix(LONG_HISTORY, [], run.templates), questions_of(LONG_LIST, run, task)[:4]),
            batch_tokens=settings.max_batch_tokens,
            token_budget=run.llm.token_budget,
        )
    logger.info(
        "task %s: %.1f ms a batch and %.3f ms a token; batches of %d tokens at the most",
        *(task, 1000 * cost.fixed_s, 1000 * cost.per_token_s, cost.batch_tokens),
    )
    return Loaded(run, scorer, probe, Batcher(scorer.score_with_cost, cost, engine))


async def _already(error: RefusedRunError) -> RefusedRunError:
    return error
