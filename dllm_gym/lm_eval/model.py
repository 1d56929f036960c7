"""The model ``dllm-gym`` of lm-evaluation-harness: texts decoded by any agent, likelihoods as LLaDA's."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm import tqdm

import dllm_gym
from dllm_gym.backends import load_backend
from dllm_gym.backends.chat import template_of
from dllm_gym.evaluation.agents import as_agent
from dllm_gym.evaluation.home import at_home, dllm_of
from dllm_gym.files import naming
from dllm_gym.generation import Generation, generate
from dllm_gym.likelihood import are_greedy, log_likelihoods

_logger = logging.getLogger(__name__)
# of ``generation_kwargs``; what else a task says about sampling has no counterpart here
_UNDERSTOOD = {"until", "max_gen_toks", "do_sample", "temperature"}
_AT_ONCE = 256  # answers whose log-likelihoods are estimated before they are reported


@register_model("dllm-gym")
class DiffusionLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A dLLM and an agent, as lm-eval asks a model.

    The arguments are those of ``--model_args``; ``batch_size``, ``max_batch_size`` and ``device`` come from
    options of their own.

    Args:
        pretrained: What ``load_backend`` takes by name: an embedded dLLM, a directory or a hub id; ``None``
            is the dLLM that the agent was trained with.
        agent: What ``as_agent`` takes by name: a strategy, ``policy:NAME``, a policy's path.
        block_length: Width of the semi-autoregressive window, or ``full``; ``own`` is what the agent was
            trained with, or full diffusion.
        completion_length: Positions to write in. ``None`` takes the task's ``max_gen_toks``, and without it
            what ``dllm_gym.generate`` takes.
        samples: Of the estimate of log-likelihoods (LLaDA's ``mc_num``).
        seed: Of the agent's draws, the token noise and the masks of log-likelihoods; a task's answers do not
            depend on the other tasks of a run.
        log: A file of JSON lines to which every answer is appended as soon as it is finished, with its steps.
        batch_size: Rows decoded at once, or ``auto`` for ``max_batch_size``. Changes the speed, not the
            result.
        max_batch_size: See there.
        device: Where the dLLM computes. lm-eval says ``cuda:0`` where nobody says anything: without CUDA it
            is ``None``, what there is.
        **backend_kwargs: Further arguments of ``load_backend``: ``dtype``, ``cache``, ...

    Raises:
        ValueError: For arguments out of range, naming what is accepted.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        agent: str = "fast-dllm:threshold=0.9",
        block_length: int | str = "own",
        completion_length: int | None = None,
        samples: int = 128,
        seed: int = 0,
        log: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        device: str | None = None,
        **backend_kwargs: Any,
    ) -> None:
        super().__init__()
        self._agent = as_agent(agent)
        told: dict[str, Any] = {} if pretrained is None else {"backend": pretrained}
        if block_length != "own":
            told["block_length"] = None if block_length == "full" else block_length
        place = at_home([self._agent], told)
        self._name, self._block_length = str(dllm_of(place)), place.get("block_length")
        if device is not None and (torch.cuda.is_available() or not device.startswith("cuda")):
            backend_kwargs["device"] = device
        self._backend_kwargs = backend_kwargs
        self._backend: Any = load_backend(self._name, **backend_kwargs)
        self._completion_length, self._samples, self._seed = completion_length, samples, seed
        self._rows = max_batch_size if str(batch_size).startswith("auto") else int(batch_size)
        self._log = None if log is None else Path(log)
        # tokens and steps of the answers, by task
        self._counts: dict[str, list[tuple[int, int]]] = defaultdict(list)

    # What lm-eval wants to know

    @property
    def tokenizer(self) -> Any:
        """The dLLM's."""
        return self._backend.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """Tells prompts that lm-eval keeps from those for other dLLMs."""
        return self._name.replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        """The token that ends a completion."""
        return int(self._backend.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What answers to nothing follow: the first token of a text, if there is one."""
        first = getattr(self.tokenizer, "bos_token_id", None)
        return self.eot_token_id if first is None else int(first)

    @property
    def max_length(self) -> int | None:
        """Number of tokens the dLLM was made for, if that is known."""
        return getattr(self._backend, "max_length", None)

    def get_model_info(self) -> dict[str, Any]:
        """What was run, and what the answers took, for ``config`` of lm-eval's results."""
        return {
            "dllm_gym": {
                "version": dllm_gym.__version__,
                "backend": self._name,
                "backend_kwargs": self._backend_kwargs,
                "agent": getattr(self._agent, "label", type(self._agent).__name__),
                "block_length": self._block_length,
                "completion_length": self._completion_length,
                "samples": self._samples,
                "seed": self._seed,
                "steps": {task: _summary(counts) for task, counts in self._counts.items()},
            }
        }

    # Prompts

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a chat; without ``add_generation_prompt`` its last message begins the answer."""
        if not hasattr(self._backend, "chat_text"):
            raise ValueError(f"{self._name} has no chat template: leave --apply_chat_template out")
        return str(self._backend.chat_text(chat_history, begun=not add_generation_prompt))

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The dLLM's only chat template.

        Raises:
            ValueError: If another one is asked for by name.
        """
        if isinstance(chat_template, str):
            raise ValueError(
                f"give --apply_chat_template without a name: a dLLM has one template, got {chat_template!r}"
            )
        family = getattr(self._backend, "family", None)
        return template_of(self.tokenizer, family) if chat_template and family is not None else None

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text, which may have been made by the chat template."""
        encode = getattr(self._backend, "encode_text", self._backend.encode_prompt)
        return [int(token) for token in encode(string)]

    # Requests

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """An answer to every request, cut before the first of its stop strings.

        Stop strings end no row earlier: it is decoded until everything before an end token is revealed, or to
        its last mask.
        """
        groups: dict[tuple[str, int | None, float], list[int]] = defaultdict(list)
        stops, unheard = [], set()
        for at, request in enumerate(requests):
            options = normalize_gen_kwargs(request.args[1], default_max_gen_toks=0)
            unheard |= set(options) - _UNDERSTOOD
            stops.append(options["until"])
            length = self._completion_length or options["max_gen_toks"] or None
            groups[request.task_name, length, options.get("temperature", 0.0)].append(at)
        if unheard:
            _logger.warning("generation_kwargs without a meaning here: %s", ", ".join(sorted(unheard)))
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="Decoding", disable=disable_tqdm) as bar:

            def finish(at: int, generation: Generation) -> None:
                texts[at] = _before(stops[at], generation.text)
                self.cache_hook.add_partial("generate_until", requests[at].args, texts[at])
                self._note(requests[at], generation)
                bar.update()

            for (_, length, temperature), places in groups.items():
                generate(
                    [self.tok_encode(requests[at].args[0]) or [self.prefix_token_id] for at in places],
                    self._agent,
                    self._name,
                    completion_length=length,
                    block_length=self._block_length,
                    temperature=temperature,
                    seed=self._seed,
                    batch_size=self._rows,
                    backend_kwargs=self._backend_kwargs,
                    on_text=lambda index, generation, places=places: finish(places[index], generation),
                )
        return texts

    def _note(self, request: Any, generation: Generation) -> None:
        counts = len(generation.tokens), generation.steps
        self._counts[request.task_name].append(counts)
        if self._log is None:
            return
        line = {
            "task": request.task_name,
            "doc_id": request.doc_id,
            "steps": generation.steps,
            "tokens": len(generation.tokens),
            "text": generation.text,
        }
        with naming(self._log), self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of every answer, and whether the dLLM itself writes it: ``dllm_gym.likelihood``."""
        pairs = [(prompt, answer) for _, prompt, answer in requests]
        # what is too long is at the beginning, and refused before hours of work
        order = sorted(range(len(pairs)), key=lambda at: -sum(map(len, pairs[at])))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        with tqdm(total=len(pairs), desc="Log-likelihoods", disable=disable_tqdm) as bar:
            for begin in range(0, len(order), _AT_ONCE):
                places = order[begin : begin + _AT_ONCE]
                these = [pairs[at] for at in places]
                values = log_likelihoods(self._backend, these, self._samples, self._seed, self._rows)
                greedy = are_greedy(self._backend, these, self._rows)
                for at, value, own in zip(places, values.tolist(), greedy.tolist(), strict=True):
                    found[at] = value, own
                    self.cache_hook.add_partial("loglikelihood", requests[at][0], found[at])
                bar.update(len(places))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """There is none.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "LLaDA's estimate is of the log-likelihood of an answer to a prompt, not of a running text: "
            "tasks of perplexity (loglikelihood_rolling, such as wikitext) cannot be run with dllm-gym"
        )


def _before(stops: Sequence[str], text: str) -> str:
    for stop in filter(None, stops):
        text = text.split(stop, 1)[0]
    return text


def _summary(counts: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Of tokens and steps of answers."""
    tokens, steps = (sum(each) for each in zip(*counts, strict=True))
    return {"answers": len(counts), "steps_mean": steps / len(counts), "tokens_per_step": tokens / steps}
