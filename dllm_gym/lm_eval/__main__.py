"""``python -m dllm_gym.lm_eval ...``: the command ``lm_eval``, which then knows the model ``dllm-gym``.

Releases of lm-eval up to 0.4.13 do not look for models of other packages.
"""

import importlib.util
import sys

if importlib.util.find_spec("lm_eval") is None:
    sys.exit("this needs lm-evaluation-harness: pip install 'dllm-gym[lm-eval]'")

from lm_eval.__main__ import cli_evaluate

import dllm_gym.lm_eval.model  # noqa: F401  # registers it

cli_evaluate()
