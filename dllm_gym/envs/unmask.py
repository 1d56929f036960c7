"""``DLLMUnmask-v0``: the environment whose every step is one denoising step of a masked dLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from operator import index
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from dllm_gym.backends import Backend
from dllm_gym.envs.canvas import BoolArray, IntArray
from dllm_gym.envs.engine import Engine, Observation
from dllm_gym.envs.rendering import render_ansi, render_rgb
from dllm_gym.envs.rewards import Reward
from dllm_gym.tasks import Task

Action = NDArray[Any]

_METADATA = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}
_FIRST_ROW: IntArray = np.zeros(1, dtype=np.int64)


class UnmaskEnv(gym.Env[Observation, Action]):
    """Decide which masked positions a frozen diffusion language model reveals next.

    ## Description
    A masked diffusion language model (dLLM) such as LLaDA writes a completion by filling a canvas of
    `L` mask tokens. At every denoising step it predicts a token and a confidence for each masked
    position; somebody must choose the positions that are actually revealed. Revealing many at once is
    fast but risky, because tokens revealed together are predicted independently of each other. The
    agent makes that choice, one bit per position. The dLLM is frozen; it is the environment.

    The problem and its reward come from a *task*: the completion is scored when everything is revealed,
    and a right answer is worth more the fewer steps it took. The Markov decision process is that of
    "Learning Unmasking Policies for Diffusion Language Models" (arXiv 2512.09106, section 3).

    ## Action Space
    `MultiBinary(L)`, any 0/1 dtype: 1 reveals the position with the token the dLLM predicts there.
    Bits outside the observation's `action_mask` are ignored and counted in `info["ignored_actions"]`.
    An action that selects nothing is counted in `info["empty_actions"]` and follows `on_empty`.
    Random legal actions: `env.action_space.sample(mask=2 * info["action_mask"])`.

    ## Observation Space
    A `Dict`:

    | Key           | Space                          | Meaning                                              |
    |---------------|--------------------------------|------------------------------------------------------|
    | `confidence`  | `Box(0, 1, (L,), float32)`     | the dLLM's probability of its token; 1 where revealed |
    | `mask`        | `MultiBinary(L)`               | 1 = still masked                                     |
    | `action_mask` | `MultiBinary(L)`               | 1 = may be revealed now: masked, in the active block |
    | `progress`    | `Box(0, 1, (1,), float32)`     | steps used / `L`                                     |

    and on request, through `observe`:

    | Key           | Space                          | Meaning                                              |
    |---------------|--------------------------------|------------------------------------------------------|
    | `entropy`     | `Box(0, log V, (L,), float32)` | of the prediction, in nats; 0 where revealed         |
    | `margin`      | `Box(0, 1, (L,), float32)`     | largest minus second probability; 1 where revealed   |
    | `top_k`       | `Box(0, 1, (L, k), float32)`   | the k largest probabilities; 1, 0, ... where revealed |
    | `hidden`      | `Box(-3.4e38, 3.4e38, (L, H), float32)` | its last hidden state; 0 where revealed |
    | `tokens`      | `Box(0, V - 1, (L,), int64)`   | the canvas: revealed tokens, mask token elsewhere    |
    | `alpha`       | `Box(0, 3.4e38, (1,), float32)` | the step price of the episode's reward              |
    | `target_steps` | `Box(1, 3.4e38, (1,), float32)` | the number of steps this episode should take       |

    All `L` positions are shown, those behind the active block included; only `action_mask` knows of
    blocks. `view="block"` hides everything outside the active block: it looks revealed (`mask` 0,
    `confidence` 1 and so on), but for `tokens`. At revealed positions the dLLM predicts, too;
    `revealed_confidence="model"` shows what: the probability there of its own prediction, whatever token
    stands there, and likewise for the other statistics. Such predictions are of the last forward, and
    none follows the last action of an episode.

    With `backend_kwargs={"cache": "prefix"}` or `"dual"` observations are exact when a block begins and
    grow stale within it: the prompt and finished blocks keep the keys and values they had then, and with
    `dual` what follows the active block keeps its observations, too. With `"block"`, for dLLMs that attend
    block by block, the active block is exact and what follows it has confidence 0 until it is reached.
    With `{"residual_context": True}` a prediction depends on the step before as well.

    ## Rewards
    0 until the episode ends, then with r the task's score in [0, 1] and n the steps used:

    - `multiplicative` (default): `r * ((L - n + 1) / L) ** alpha`, the form of the paper's released code
    - `multiplicative-paper`: `r * (1 - n / L) ** alpha`, the form of its text: 0 for L steps
    - `additive`: `r - alpha * n / L`
    - `correctness`: `r`

    or what a function `(r, n, L, alpha) -> float` of your own says.

    With another `target_steps` than 1 the price is on missing it: n is replaced by the factor by which it
    is missed, `max(n / target_steps, target_steps / n)`. Where `alpha` or `target_steps` is a range, every
    episode draws its own value, log-uniformly; observe it, and one policy learns the whole frontier.

    The price of steps is in the final reward already, so agents should use a discount of 1.

    ## Starting State
    A problem of the task's `split`, drawn by the environment's generator, and a completion of `L` masks.
    `reset(options={"problem": index})` picks the problem.

    ## Episode End
    *Terminated* when every position is revealed, when `L` steps are used (the budget is part of the
    task, so this is no truncation), or, with `stop_at_eos`, once an end token and everything before it
    are revealed. Never truncated. What is scored is the text before the first end token.

    ## Information
    `reset` returns `problem` (its index), `prompt` and `action_mask`; `step` returns `action_mask`
    (`(L,)` int8) and, when the episode ends, `is_success`, `score`, `nfe` (steps used; each is one
    forward of the dLLM), `completion` (text), `problem`, `empty_actions`, `ignored_actions` and the
    task's own metrics.

    ## Arguments
    ```python
    import gymnasium as gym
    import dllm_gym

    env = gym.make("DLLMUnmask-v0", task="arithmetic", block_length=8, alpha=1.0)
    ```
    - `backend=None`: the dLLM: an embedded one by name (`tiny-arithmetic`, `tiny-sudoku`), a local
      checkpoint directory, a hub id, or an object with the `Backend` protocol. `None` takes the
      embedded dLLM that was trained for the task.
    - `backend_kwargs=None`: for loading it, such as `{"dtype": "bfloat16", "device": "cuda"}`.
    - `task="arithmetic"`: a registered task or an object with the `Task` protocol; `docs/tasks.md` is about
      those that are registered.
    - `task_kwargs=None`: the task's parameters, such as `{"seed": 1}`.
    - `split="train"`: which of the task's problems: `train`, `validation` or `test`.
    - `completion_length=None`: L; `None` takes the task's own.
    - `block_length=None`: semi-autoregressive decoding in blocks of this length, from left to right;
      `None` is full diffusion, one block of length L. Some dLLMs (SDAR, LLaDA2, Fast-dLLM v2, A2D-bd3lm)
      attend block by block: nothing behind the block being written is seen, so `None` takes their own
      blocks and only divisors of that length are accepted. Most of them count blocks from the first
      token of the prompt, as their publishers do; then the first block of a completion may be shorter.
    - `alpha=1.0`: exponent (or factor) of the step price, or a range `(low, high)`, see Rewards.
    - `target_steps=1`: number of steps to aim at, or a range `(low, high)`; with 1, the fewer the better.
    - `reward="multiplicative"`: one of the four names or a function, see Rewards.
    - `reward_metric=None`: r is this metric of the task instead of its score, such as `answer_correct` of
      `arithmetic`, which ignores the derivation. `is_success` and `score` stay what they are.
    - `on_empty="best"`: an action that selects nothing reveals the most confident selectable position;
      `"noop"` reveals nothing and spends the step (the dLLM is not run again: nothing has changed).
    - `temperature=0.0`: dLLM token temperature. Above 0 tokens are drawn, with noise from the
      environment's generator, and confidence is the probability of the drawn token.
    - `observe=()`: further observation keys, see above.
    - `top_k=8`: k of the observation `top_k`.
    - `revealed_confidence="one"`: `confidence` is 1 at revealed positions; `"model"`: what the dLLM says.
    - `view="completion"`: every position is shown; `"block"`: the active block only.
    - `stop_at_eos=False`: see Episode End.
    - `group_size=1`: in the vector environment, that many consecutive sub-environments get the same
      sequence of problems.
    - `render_mode=None`: `"ansi"` or `"rgb_array"`.

    ## Vectorized environment
    `gym.make_vec("DLLMUnmask-v0", num_envs=64, autoreset_mode="SameStep")` makes a `UnmaskVectorEnv`,
    which runs one forward for all rows that need one. It takes the same arguments and

    - `autoreset_mode="NextStep"`: also `"SameStep"` or `"Disabled"`, or the `AutoresetMode`.
      `SameStep` wastes no step and suits training; a row that finishes starts its next problem in the
      same forward. `Disabled` leaves finished rows alone until
      `reset(options={"reset_mask": mask, "problem": indices})`.

    ## References
    - M. Jazbec et al., Learning Unmasking Policies for Diffusion Language Models, arXiv 2512.09106.
    - S. Nie et al., Large Language Diffusion Models, arXiv 2502.09992.

    ## Version History
    - v0: first version.
    """

    metadata = _METADATA

    def __init__(
        self,
        backend: str | Backend | None = None,
        backend_kwargs: Mapping[str, Any] | None = None,
        task: str | Task = "arithmetic",
        task_kwargs: Mapping[str, Any] | None = None,
        split: str = "train",
        completion_length: int | None = None,
        block_length: int | None = None,
        alpha: float | Sequence[float] = 1.0,
        target_steps: float | Sequence[float] = 1.0,
        reward: str | Reward = "multiplicative",
        reward_metric: str | None = None,
        on_empty: str = "best",
        temperature: float = 0.0,
        observe: Sequence[str] = (),
        top_k: int = 8,
        revealed_confidence: str = "one",
        view: str = "completion",
        stop_at_eos: bool = False,
        group_size: int = 1,
        render_mode: str | None = None,
    ) -> None:
        self.metadata = deepcopy(_METADATA)
        self.render_mode = _check_render_mode(render_mode)
        self.engine = Engine(
            1,
            backend=backend,
            backend_kwargs=backend_kwargs,
            task=task,
            task_kwargs=task_kwargs,
            split=split,
            completion_length=completion_length,
            block_length=block_length,
            alpha=alpha,
            target_steps=target_steps,
            reward=reward,
            reward_metric=reward_metric,
            on_empty=on_empty,
            temperature=temperature,
            observe=observe,
            top_k=top_k,
            revealed_confidence=revealed_confidence,
            view=view,
            stop_at_eos=stop_at_eos,
            group_size=group_size,
        )
        self.observation_space: gym.Space[Any] = self.engine.observation_space
        self.action_space = self.engine.action_space
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode; ``options={"problem": index}`` picks the problem.

        Raises:
            ValueError: For an unknown option or a problem index the task does not have.
        """
        super().reset(seed=seed)
        _check_options(options, ("problem",))
        if self.engine.problem_rngs[0] is not self.np_random:
            self.engine.problem_rngs[0] = self.np_random
            self.engine.noise_rngs[0] = _noise_rng(self._noise_seed())
        problem = (options or {}).get("problem")
        self.engine.start(_FIRST_ROW, None if problem is None else _check_problems(problem, 1))
        self.engine.predict(_FIRST_ROW)
        self._running = True
        observation = self._observation()
        return observation, {
            "problem": int(self.engine.indices[0]),
            "prompt": self.engine.problems[0].prompt,  # type: ignore[union-attr]
            "action_mask": observation["action_mask"].copy(),
        }

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Reveals the selected positions and lets the dLLM predict again.

        Args:
            action: ``(L,)``, 0/1 in any dtype.

        Raises:
            ValueError: If the action has another shape.
            RuntimeError: If no episode is running.
        """
        if not self._running:
            raise RuntimeError("no episode is running; call reset first")
        changed = self.engine.act(
            _FIRST_ROW, _check_action(action, (1, self.engine.length), self.engine.length)
        )
        terminated = bool(self.engine.canvas.finished()[0])
        reward, info = 0.0, dict[str, Any]()
        if terminated:
            self._running = False
            ((reward, info),) = self.engine.outcomes(_FIRST_ROW)
        elif changed[0]:
            self.engine.predict(_FIRST_ROW)
        observation = self._observation()
        info["action_mask"] = observation["action_mask"].copy()
        return observation, reward, terminated, False, info

    def action_masks(self) -> BoolArray:
        """``(2L,)`` bool for sb3-contrib's maskable algorithms: allow 0, allow 1, position by position."""
        return _two_sided(self.engine.canvas.selectable()[0])

    def render(self) -> Any:
        """The current state as coloured text (``ansi``) or as a picture (``rgb_array``)."""
        if self.render_mode is None:
            gym.logger.warn("render() was called, but the environment was made without a render_mode")
            return None
        return _render(self.engine, 0, self.render_mode)

    def _noise_seed(self) -> int:
        if self.np_random_seed >= 0:
            return self.np_random_seed
        return int(deepcopy(self.np_random).integers(2**63))  # Gymnasium knows no seed of a user's generator

    def _observation(self) -> Observation:
        return {key: value[0] for key, value in self.engine.observation().items()}


class UnmaskVectorEnv(gym.vector.VectorEnv[Observation, Action, NDArray[Any]]):
    """``num_envs`` episodes of ``DLLMUnmask-v0`` in one batch; see ``UnmaskEnv`` for everything else.

    Row i behaves exactly like a single environment seeded with ``seed + i`` (or ``seed[i]``): it has its
    own generator, and no row depends on another. With ``group_size`` G, rows of a group of G draw their
    problems from the generator of the group's first row.

    Args:
        num_envs: Number of rows.
        autoreset_mode: ``NextStep``, ``SameStep`` or ``Disabled``, as text or ``AutoresetMode``.
        render_mode: As in ``UnmaskEnv``.
        **kwargs: The arguments of ``UnmaskEnv``.

    Raises:
        ValueError: For values out of range, naming what is accepted.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs = num_envs
        self.autoreset_mode = _check_autoreset_mode(autoreset_mode)
        self.metadata = {**deepcopy(_METADATA), "autoreset_mode": self.autoreset_mode}
        self.render_mode = _check_render_mode(render_mode)
        self.engine = Engine(num_envs, **kwargs)
        self.single_observation_space = self.engine.observation_space
        self.single_action_space = self.engine.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ended = np.ones(num_envs, dtype=bool)  # rows waiting for a reset
        self._started = False
        self._seeds = [0] * num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts episodes in all rows, or in those that ``options`` name.

        Args:
            seed: Row i is seeded with ``seed + i``, or with ``seed[i]``.
            options: ``reset_mask``, ``(num_envs,)`` bool array, restricts the reset to some rows;
                ``problem``, an index or ``(num_envs,)`` indices, picks the problems.

        Raises:
            TypeError: If ``reset_mask`` is no bool array.
            ValueError: For wrong shapes, unknown options or problem indices, an empty ``reset_mask``.
        """
        options = options or {}
        _check_options(options, ("reset_mask", "problem"))
        rows = np.arange(self.num_envs)
        if "reset_mask" in options:
            rows = np.flatnonzero(_check_reset_mask(options["reset_mask"], self.num_envs))
        self._seed(seed, rows)
        problems = options.get("problem")
        if problems is not None:
            problems = [_check_problems(problems, self.num_envs)[row] for row in rows]
        self.engine.start(rows, problems)
        self.engine.predict(rows)
        self._ended[rows] = False
        self._started = True
        observation = self.engine.observation()
        return observation, self._reset_infos({}, rows, observation)

    def step(
        self, actions: Action
    ) -> tuple[Observation, NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Steps every row; see ``UnmaskEnv.step``.

        Args:
            actions: ``(num_envs, L)``, 0/1 in any dtype.

        Raises:
            ValueError: If the actions have another shape.
            RuntimeError: Before the first reset, or, but for ``NextStep``, if a row has no running episode.
        """
        actions = _check_action(actions, (self.num_envs, self.engine.length), self.engine.length)
        if not self._started:
            raise RuntimeError("no episode is running; call reset first")
        if self.autoreset_mode is not AutoresetMode.NEXT_STEP and self._ended.any():
            rows = np.flatnonzero(self._ended).tolist()
            raise RuntimeError(f"no episode is running in rows {rows}; reset them by reset_mask first")
        restarted = np.flatnonzero(self._ended)  # NextStep: these spend the step on their reset
        acting = np.flatnonzero(~self._ended)
        stale = np.zeros(self.num_envs, dtype=bool)  # rows whose prediction must be computed anew
        stale[acting] = self.engine.act(acting, actions[acting])
        terminations = self.engine.canvas.finished()
        terminations[restarted] = False
        ended = np.flatnonzero(terminations)
        rewards = np.zeros(self.num_envs)
        infos: dict[str, Any] = {}
        stale[ended] = False
        self._ended[:] = terminations
        if len(restarted):
            self.engine.start(restarted)
            stale[restarted] = True
        outcomes = self.engine.outcomes(ended)
        rewards[ended] = [reward for reward, _ in outcomes]
        if self.autoreset_mode is AutoresetMode.SAME_STEP and len(ended):
            self._add_final(infos, ended, [info for _, info in outcomes])
            self.engine.start(ended)
            stale[ended] = True
            self._ended[:] = False
            restarted = ended
        else:
            for row, (_, info) in zip(ended.tolist(), outcomes, strict=True):
                infos = self._add_info(infos, info, row)
        self.engine.predict(np.flatnonzero(stale))
        observation = self.engine.observation()
        infos = self._reset_infos(infos, restarted, observation)
        return observation, rewards, terminations, np.zeros(self.num_envs, dtype=bool), infos

    def state(self) -> dict[str, Any] | None:
        """Everything about the episodes in flight: arrays and plain values; see ``Engine.state``."""
        engine = self.engine.state()
        return None if engine is None else {"engine": engine, "ended": self._ended.copy()}

    def restore(self, state: Mapping[str, Any]) -> Observation:
        """Goes on where ``state`` was taken, in an environment made with the same arguments.

        Returns:
            The observation that was last seen there.
        """
        self.engine.restore(state["engine"])
        self._ended[:] = state["ended"]
        self._started = True
        return self.engine.observation()

    def action_masks(self) -> BoolArray:
        """``(num_envs, 2L)`` bool, as in ``UnmaskEnv.action_masks``."""
        return _two_sided(self.engine.canvas.selectable())

    def render(self) -> tuple[Any, ...] | None:
        """One frame per row."""
        if self.render_mode is None:
            gym.logger.warn("render() was called, but the environment was made without a render_mode")
            return None
        return tuple(_render(self.engine, row, self.render_mode) for row in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of every row."""
        return tuple(self._seeds)

    def _seed(self, seed: int | Sequence[int | None] | None, rows: IntArray) -> None:
        """Seeds ``rows``; without a seed, only rows that never had one."""
        seeds: list[int | None]
        if seed is None:
            seeds = [None] * self.num_envs
        elif isinstance(seed, int | np.integer):
            seeds = [int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = [None if one is None else index(one) for one in seed]
            if len(seeds) != self.num_envs:
                raise ValueError(f"got {len(seeds)} seeds for {self.num_envs} environments")
        first = not self._started
        group = self.engine.group_size
        for row in range(self.num_envs) if first else rows.tolist():
            given, leader = seeds[row], row - row % group
            if given is None and not first:
                continue
            self._seeds[row] = np_random(None)[1] if given is None else given
            self.engine.problem_rngs[row] = np_random(self._seeds[leader])[0]
            self.engine.noise_rngs[row] = _noise_rng(self._seeds[row])

    def _add_final(self, infos: dict[str, Any], ended: IntArray, final_infos: list[dict[str, Any]]) -> None:
        """``final_obs`` and ``final_info`` of rows that SameStep is about to restart."""
        last = self.engine.observation()
        for row, info in zip(ended.tolist(), final_infos, strict=True):
            final_obs = {key: value[row].copy() for key, value in last.items()}
            info["action_mask"] = final_obs["action_mask"].copy()
            infos.update(self._add_info(infos, {"final_obs": final_obs, "final_info": info}, row))

    def _reset_infos(self, infos: dict[str, Any], rows: IntArray, observation: Observation) -> dict[str, Any]:
        for row in rows.tolist():
            problem = self.engine.problems[row]
            assert problem is not None
            info = {"problem": int(self.engine.indices[row]), "prompt": problem.prompt}
            infos = self._add_info(infos, info, row)
        infos["action_mask"] = observation["action_mask"].copy()
        infos["_action_mask"] = np.ones(self.num_envs, dtype=bool)
        return infos


def _render(engine: Engine, row: int, mode: str) -> Any:
    frame = engine.frame(row)
    return render_ansi(frame) if mode == "ansi" else render_rgb(frame)


def _two_sided(selectable: BoolArray) -> BoolArray:
    pairs = np.stack([np.ones_like(selectable), selectable], axis=-1)  # (..., L, 2)
    return pairs.reshape(*selectable.shape[:-1], -1)


def _check_action(action: Any, shape: tuple[int, int], length: int) -> Action:
    if hasattr(action, "detach"):
        action = action.detach().cpu().numpy()
    array = np.asarray(action)
    expected = shape if shape[0] > 1 or array.ndim == 2 else (length,)
    if array.shape != expected or array.dtype.kind not in "biuf":
        raise ValueError(
            f"an action must be 0/1 numbers of shape {expected}, got {array.dtype} of {array.shape}"
        )
    if not ((array == 0) | (array == 1)).all():
        raise ValueError(f"an action must hold only 0 and 1, got values from {array.min()} to {array.max()}")
    return array.reshape(shape)


def _check_options(options: Mapping[str, Any] | None, known: Sequence[str]) -> None:
    unknown = set(options or ()) - set(known)
    if unknown:
        raise ValueError(f"unknown reset options {sorted(unknown)}; known: {', '.join(known)}")


def _check_problems(problems: Any, num_envs: int) -> list[int]:
    array = np.asarray(problems)
    if array.dtype.kind not in "iu" or array.shape not in ((), (num_envs,)):
        raise ValueError(f"problem must be an index or integers of shape ({num_envs},), got {problems!r}")
    indices: list[int] = np.broadcast_to(array, num_envs).tolist()
    return indices


def _check_reset_mask(mask: Any, num_envs: int) -> BoolArray:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"reset_mask must be a numpy array of bool, got {getattr(mask, 'dtype', type(mask))}")
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(f"reset_mask must have shape ({num_envs},) and a True in it, got {mask}")
    return mask


def _check_render_mode(mode: str | None) -> str | None:
    modes: Any = _METADATA["render_modes"]
    if mode is not None and mode not in modes:
        raise ValueError(f"unknown render_mode {mode!r}; choose one of {', '.join(modes)}")
    return mode


def _check_autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(member.value for member in AutoresetMode)
        raise ValueError(f"unknown autoreset_mode {mode!r}; choose one of {known}") from None


def _noise_rng(seed: int) -> np.random.Generator:
    # a stream of its own, so that token noise never shifts the sequence of problems
    return np.random.default_rng([seed, 1])
