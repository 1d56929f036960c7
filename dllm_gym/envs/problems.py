"""Problems of a task as a dLLM reads them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from dllm_gym.backends import Backend
from dllm_gym.prompts import is_token_ids
from dllm_gym.tasks import Problem, Task


class Problems:
    """The problems of a task and the token ids that stand before their completions; the last ones are kept.

    Args:
        task: Whose problems.
        backend: Whose tokens.
    """

    def __init__(self, task: Task, backend: Backend) -> None:
        self._task, self._backend = task, backend
        self._keep()

    def _keep(self) -> None:
        # the rows of a group are given the same problem one soon after the other
        self.at = lru_cache(maxsize=256)(self._at)

    def __getstate__(self) -> dict[str, Any]:  # what is kept neither pickles nor belongs to a copy
        return {"_task": self._task, "_backend": self._backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._keep()

    def _at(self, index: int) -> tuple[Problem, list[int]]:
        """``at(index)``: a problem and its prompt.

        Raises:
            ValueError: If the task has no such problem, and for what ``encode`` refuses.
        """
        try:
            problem = self._task.problem(index)
        except IndexError as error:
            raise ValueError(str(error)) from None
        return problem, self.encode(problem)

    def encode(self, problem: Problem) -> list[int]:
        """Token ids of what stands before a completion: the prompt, and the beginning given to the answer.

        Raises:
            ValueError: If the dLLM has no such tokens, or its mask token is among them.
        """
        backend = self._backend
        prompt: Any = problem.prompt  # a text, or one of the other kinds of ``dllm_gym.prompts``
        if problem.turns:
            prompt = [*problem.turns, {"role": "user", "content": prompt}]
        ids = list(prompt) if is_token_ids(prompt) else backend.encode_prompt(prompt)
        if problem.prefix:
            ids = [*ids, *backend.tokenizer.encode(problem.prefix, add_special_tokens=False)]
        foreign = sorted({i for i in ids if not 0 <= i < backend.vocab_size})
        if foreign:
            raise ValueError(
                f"the prompt {prompt!r:.200} has the token ids {foreign!s:.200}, the dLLM has tokens 0 to "
                f"{backend.vocab_size - 1}: tokenizer and dLLM do not belong together"
            )
        if backend.mask_token_id in ids:
            raise ValueError(f"the prompt {prompt!r:.200} contains the dLLM's mask token")
        return ids
