"""A plain Ray Serve application to compare with: one deployment that generates an answer to every question.

It answers the same requests with the same model and prompts as recranker's own, one after the other.
"""

import asyncio
from typing import Any

import torch
from ray import serve
from ray.serve import Application
from starlette.requests import Request

from jobs.benchmarks.serving_engine import prompts_of
from jobs.benchmarks.ways import generate
from recranker.llm.encoding import encode_all
from recranker.settings import Settings
from serve.models import verified_model
from serve.settings import ServeSettings
from serve.source import read_run


class GenerateSettings(Settings):
    """What is served."""

    service: ServeSettings
    """Whose run, and which requests are taken."""
    tokens: int
    """Tokens generated for each question."""


def build(settings: GenerateSettings) -> Application:
    """The application Ray Serve runs."""
    deployment = serve.deployment(Generate, name="generate", max_ongoing_requests=1, ray_actor_options={"num_cpus": 1})
    return deployment.bind(settings)


class Generate:
    """Loads the model once; answers in a thread, so that Serve's health checks go on."""

    def __init__(self, settings: GenerateSettings) -> None:
        self.settings = settings
        self.run = read_run(settings.service)
        self.lm = verified_model(self.run.tasks[0], self.run, settings.service.cache)

    async def __call__(self, request: Request) -> dict[str, Any]:
        return {"answers": await asyncio.to_thread(self.answers, await request.json())}

    def answers(self, body: dict[str, Any]) -> list[str]:
        """A text per question, one ``generate`` each."""
        prompts = prompts_of(body, self.run, self.settings.service)
        trees = encode_all(list(prompts.values()), self.lm, self.run.llm.max_prompt_tokens)
        rows = [tree.prefix_ids + branch.token_ids for tree in trees for branch in tree.branches]
        found: list[str] = []
        for ids in rows:
            row = torch.tensor([ids], device=self.lm.device)
            with torch.inference_mode():
                whole = generate(self.lm, row, self.settings.tokens)[0]
            found.append(self.lm.tokenizer.decode(whole[len(ids) :]))
        return found
