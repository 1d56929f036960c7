"""From what a request asks for to the jobs that it makes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dllm_gym.envs.engine import Engine
from dllm_gym.evaluation.agents import Agent
from dllm_gym.evaluation.decode import episode_seed
from dllm_gym.server.asked import Asked, BadField
from dllm_gym.server.exchange import Exchange
from dllm_gym.server.metrics import Metrics
from dllm_gym.server.refusals import INVALID, Refusal
from dllm_gym.server.scheduling import Job, Scheduler


@dataclass
class Service:
    """Everything that answers need.

    Attributes:
        model: The name of the dLLM.
        engine: Where it writes; the scheduler's own.
        agent: Decides where a request does not say how.
        scheduler: Takes the jobs.
        metrics: Counts.
        api_key: What clients must know, if anything.
    """

    model: str
    engine: Engine
    agent: Agent
    scheduler: Scheduler
    metrics: Metrics
    api_key: str | None = None

    def __post_init__(self) -> None:
        self.created = int(time.time())
        self._with = lru_cache(maxsize=256)(self._make)

    def agent_for(self, asked: Asked) -> Agent:
        """The agent with the options of a request.

        Raises:
            BadField: If it does not take them.
        """
        return self._with(json.dumps(dict(asked.options), sort_keys=True)) if asked.options else self.agent

    def _make(self, options: str) -> Agent:
        label = getattr(self.agent, "label", type(self.agent).__name__)
        if not hasattr(self.agent, "with_options"):
            raise BadField("agent", f"{label} takes no options")
        try:
            agent: Any = self.agent.with_options(**json.loads(options))
        except ValueError as error:
            raise BadField("agent", str(error)) from None
        missing = set(getattr(agent, "requires", ())) - set(self.engine.observation_space.spaces)
        if missing:
            read = ", ".join(sorted(missing))
            raise BadField("agent", f"with these options {label} would read {read}, which is not observed")
        return agent  # type: ignore[no-any-return]

    def check_model(self, name: str) -> None:
        """Raises a Refusal if this is not the name of the dLLM."""
        if name != self.model:
            message = f"there is no model {name!r:.100}; this server has {self.model!r}"
            raise Refusal(404, INVALID, message, param="model", code="model_not_found")

    def jobs(self, asked: Asked, seed: int, exchange: Exchange) -> list[Job]:
        """The completions of a request, in the order of their choices: all of a prompt, then the next one's.

        Raises:
            Refusal: If another dLLM or temperature is asked for.
            BadField: For options that the agent does not take.
        """
        self.check_model(asked.model)
        own = self.engine.temperature
        if asked.temperature is not None and asked.temperature != own:
            raise BadField(
                "temperature",
                f"this server writes at temperature {own:g}, got {asked.temperature:g}: leave it out",
            )
        agent = self.agent_for(asked)
        prompts = [prompt for prompt in asked.prompts for _ in range(asked.n)]
        return [
            Job(
                prompt,
                agent,
                episode_seed(seed % 2**64, index),
                exchange.listener(index),
                streams=asked.stream,
                limit=asked.limit,
                stops=asked.stops,
                shows_canvas=asked.stream and asked.canvas,
            )
            for index, prompt in enumerate(prompts)
        ]

    def description(self) -> dict[str, Any]:
        """Of the dLLM, as a model."""
        return {
            "id": self.model,
            "object": "model",
            "created": self.created,
            "owned_by": "dllm-gym",
            "dllm": {
                "completion_length": self.engine.length,
                "block_length": self.engine.description()["block_length"],
                "temperature": self.engine.temperature,
                "agent": getattr(self.agent, "label", type(self.agent).__name__),
                "end_tokens": [
                    self.engine.backend.tokenizer.decode([token])
                    for token in sorted(self.engine.end_token_ids)
                ],
            },
        }
