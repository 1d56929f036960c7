"""The published forms of asking, word for word, for a score means little with other words.

``d1`` forms are those of dllm-reasoning/d1 (Apache-2.0), training in ``diffu-grpo/data_utils.py`` and
evaluation in ``eval/``; arXiv 2512.09106 trains and evaluates with the same. ``lm-eval`` forms are those
of EleutherAI/lm-evaluation-harness (MIT), tasks ``gsm8k`` and ``minerva_math``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptForm:
    """How a question is put.

    Attributes:
        before: Text before the question.
        after: Text after it.
        prefix: What the answer is made to begin with.
    """

    before: str
    after: str = ""
    prefix: str = ""

    def __call__(self, question: str, solved: Sequence[tuple[str, str]] = ()) -> str:
        """The prompt, after examples with their answers."""
        examples = "".join(f"{self.before}{asked}{self.after} {answer}\n\n" for asked, answer in solved)
        return f"{examples}{self.before}{question}{self.after}"


_REASON = "<reasoning>"
_EXPERT = (
    "You are a math expert. You will be given a question to solve. Solve it step by step. "
    "Wrap the final answer in a \\boxed{}."
)
_BOXED_FORMAT = (
    "Respond in the following format:\n<reasoning>\nYour reasoning here\n</reasoning>\n"
    "<answer>\n\\boxed{...}\n</answer>"
)
_TRAINING_FORMAT = (
    "\nRespond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>\n\n\n"
)

GSM8K_TRAINING = PromptForm(_TRAINING_FORMAT)
GSM8K_D1 = PromptForm(f"{_EXPERT} \n{_BOXED_FORMAT}\n\n", prefix=_REASON)
GSM8K_LM_EVAL = PromptForm("Question: ", "\nAnswer:")

MATH_TRAINING = PromptForm(f"{_TRAINING_FORMAT}{_EXPERT} \n\n")
MATH_D1 = PromptForm(f'{_EXPERT}\n{_BOXED_FORMAT}" \n\n\n', prefix=_REASON)  # the stray quote is theirs
MATH_LM_EVAL = PromptForm("Problem:\n", "\n\nSolution:")

COUNTDOWN_D1 = PromptForm(
    "Using only the provided numbers, create an arithmetic expression that evaluates to exactly the provided "
    "target number. You may use the operations +, -, *, and / as needed, but each number must be used "
    "exactly once. Think step-by-step. After reasoning, provide only your final expression inside "
    "\\boxed{} tags without including an equals sign or the target number. For example: \\boxed{a + b * c}"
    f"{_BOXED_FORMAT}\n\n",
    prefix=_REASON,
)

SUDOKU_D1 = PromptForm(
    "\nPlease solve the following 4x4 Sudoku puzzle. The puzzle is provided as a 16-character string reading "
    "left-to-right, top-to-bottom, where '0' represents empty cells.\n\n"
    "Rules:\n- Fill empty cells with digits 1-4\n- Each row must contain digits 1-4 exactly once\n"
    "- Each column must contain digits 1-4 exactly once\n"
    "- Each 2x2 box must contain digits 1-4 exactly once\n\n"
    "Important: Your solution must be a COMPLETE 16-character string with only the digits 1-4, representing "
    "your final solved grid.\n\n"
    "Respond in this exact format:\n<reasoning>\nYour step-by-step solving process\n</reasoning>\n"
    "<answer>\n[16-character solution string with no spaces or separators]\n</answer>\n\n\n"
    "Solve the following Sudoku puzzle: ",
    "\n",
    prefix=_REASON,
)


def form_of_split(forms: Mapping[str, tuple[PromptForm, PromptForm]], prompt: str, split: str) -> PromptForm:
    """The form called ``prompt``: the first of its pair for ``train``, else the second.

    Raises:
        ValueError: For an unknown name.
    """
    if prompt not in forms:
        raise ValueError(f"unknown prompt {prompt!r}; choose one of {', '.join(forms)}")
    return forms[prompt][split != "train"]
