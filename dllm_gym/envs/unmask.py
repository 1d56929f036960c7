"""``DLLMUnmask-v0``: the environment whose every step is one denoising step of a masked dLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Never

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dllm_gym.backends import Backend
from dllm_gym.envs import checks
from dllm_gym.envs.blocks import BlockLength
from dllm_gym.envs.engine import ARGUMENTS, Engine
from dllm_gym.envs.observations import Observation
from dllm_gym.envs.rewards import Reward
from dllm_gym.envs.rows import BoolArray, IntArray
from dllm_gym.envs.shell import METADATA, Shell, noise_rng, two_sided
from dllm_gym.tasks import Task

Action = NDArray[Any]

_ROW: IntArray = np.zeros(1, dtype=np.int64)  # the only one


class UnmaskEnv(Shell, gym.Env[Observation, Action]):
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
    `MultiBinary(L)`, any 0/1 dtype: 1 reveals the position with the token the dLLM predicts there; with
    `actions="set-state"` or `"edit"` a 0 where a token stands takes it back (see Taking back). Arrays,
    sequences and tensors are taken, on any device, with a gradient or without; anything but 0 and 1, such
    as logits or probabilities, is a ValueError, here and wherever agents act (`evaluate`, `generate`, ...).
    Bits outside the observation's `action_mask` are ignored and counted in `info["ignored_actions"]`.
    An action that changes nothing is counted in `info["empty_actions"]` and follows `on_empty`.
    Random legal actions: `env.action_space.sample(mask=2 * info["action_mask"])`.

    ### Taking back
    With `actions="set-state"` a bit says whether its position shall be revealed after the step. A masked
    position with 1 is revealed, a revealed one with 0 is masked again; the other two stay as they are.
    `action_mask` covers the whole active block, but for tokens that were taken back `max_remasks` times
    before: these stand. So does every block that is finished. With `actions="edit"` a token that is taken
    back is replaced in the same step by the one the dLLM would write there now; where that is the same one,
    nothing changes. All else is as with `"set-state"`. What an agent needs to judge a token is
    observed without being asked for: `written`, the dLLM's probability now of the token that stands there.
    `forbid_remask=True` leaves actions as they are and lets nothing be taken back: what a policy that may
    take back is worth without that right.

    ## Observation Space
    A `Dict`:

    | Key           | Space                          | Meaning                                              |
    |---------------|--------------------------------|------------------------------------------------------|
    | `confidence`  | `Box(0, 1, (L,), float32)`     | the dLLM's probability of its token; 1 where revealed |
    | `mask`        | `MultiBinary(L)`               | 1 = still masked                                     |
    | `action_mask` | `MultiBinary(L)`               | 1 = may be revealed now: masked, in the active block |
    | `progress`    | `Box(0, 1, (1,), float32)`     | steps used / `L`; `max_steps / L` may be above 1     |

    and on request, through `observe`:

    | Key           | Space                          | Meaning                                              |
    |---------------|--------------------------------|------------------------------------------------------|
    | `entropy`     | `Box(0, log V, (L,), float32)` | of the prediction, in nats; 0 where revealed         |
    | `margin`      | `Box(0, 1, (L,), float32)`     | largest minus second probability; 1 where revealed   |
    | `top_k`       | `Box(0, 1, (L, k), float32)`   | the k largest probabilities; 1, 0, ... where revealed |
    | `hidden`      | `Box(-3.4e38, 3.4e38, (L, H), float32)` | its last hidden state; 0 where revealed |
    | `predicted`   | `Box(0, V - 1, (L,), int64)`   | the token it would write, at every position          |
    | `predicted_confidence` | `Box(0, 1, (L,), float32)` | its probability of that, at every position      |
    | `written`     | `Box(0, 1, (L,), float32)`     | its probability of what stands there; 0 where masked |
    | `quality`     | `Box(0, 1, (L,), float32)`     | how likely what stands there is right; 0 where masked |
    | `divergence`  | `Box(0, 27.7, (L,), float32)`  | KL from the step before, in nats; 0 where revealed   |
    | `persistence` | `Box(0, L, (L,), float32)`     | steps its best token has stayed; L where revealed    |
    | `ends`        | `MultiBinary(L)`               | 1 = masked, and what it would write is an end token  |
    | `attention`   | `Box(0, 1, (L, L), float32)`   | what predicts the first reads so much at the second |
    | `tokens`      | `Box(0, V - 1, (L,), int64)`   | the canvas: revealed tokens, mask token elsewhere    |
    | `remasks`     | `Box(0, max_steps, (L,), float32)` | how often the position was taken back            |
    | `alpha`       | `Box(0, 3.4e38, (1,), float32)` | the step price of the episode's reward              |
    | `target_steps` | `Box(1, 3.4e38, (1,), float32)` | the number of steps this episode should take       |
    | `block_length` | `Box(1, L, (1,), float32)`    | positions per block; `L` is full diffusion   |

    All `L` positions are shown, those behind the active block included; only `action_mask` knows of
    blocks. `view="block"` hides everything outside the active block: it looks revealed (`mask` 0,
    `confidence` 1 and so on), but for `tokens`. At revealed positions the dLLM predicts, too;
    `revealed_confidence="model"` shows what: the probability there of its own prediction, whatever token
    stands there, and likewise for the other statistics. Such predictions are of the last forward, and
    none follows the last action of an episode.

    `predicted`, `predicted_confidence` and `written` are about revealed positions too, whatever
    `revealed_confidence` says; outside of `view="block"` they are the mask token, 1 and 1. Where a mask
    token stands `written` is 0: the dLLM never writes it. `quality` is like `written`, but what a head on the
    hidden state says that was trained to tell right tokens from wrong ones (PRISM, arXiv 2510.01384;
    `dllm-gym quality-head`). dLLMs without one are refused. `divergence` is KLASS's (arXiv 2511.05664),
    `KL(p now || p before)`, with 1e-12 added to every probability that a logarithm is taken of. In the
    first step p before is 0, as in KLASS's code: the divergence is 27.6 minus the entropy, and nothing
    looks settled. `persistence` is 0 in the first step and whenever the most probable token is another
    one than in the step before. A step that changes nothing on the canvas repeats the prediction:
    divergence 0, and persistence one more.

    `attention` is the softmax of the attention, a mean over heads and over layers: all, or those that
    `backend_kwargs={"attention_layers": [-2, -1]}` names. Row i is of the column of the dLLM that predicts
    position i, in shifted layouts the one before it; column j is of the token that stands at j. A row sums to
    1 minus what is read in the prompt. It is about revealed positions too; with `view="block"` it is that of
    pairs inside the block, 0 elsewhere. It is what transformers gives for `output_attentions=True` with
    `attn_implementation="eager"`, up to 1e-5 in float32. Decoders on a CPU show it as they are. Decoders on a
    GPU, and encoders anywhere, have to be loaded with `backend_kwargs={"attn_implementation": "eager"}`, and
    are refused otherwise.

    What each costs: `hidden`, `predicted` and `ends` are there anyway; `entropy`, `margin`, `top_k` and
    `persistence` are a pass over the logits; `written` looks up one of them; `quality` is two
    layers on the hidden state; `divergence` needs `4 L V` bytes of probabilities per row, and keeps them
    from step to step where the dLLM computes (a gigabyte for 8 rows of 256 positions of LLaDA-8B);
    `attention` keeps that of all heads and layers until the forward ends, squares of prompt and completion.
    None takes a further forward, and all are as exact, and as independent of the other rows, as `confidence`
    is.
    [What a step takes with each](../benchmarks/results/observations.md).

    With `backend_kwargs={"cache": "prefix"}` or `"dual"` observations are exact when a block begins and
    grow stale within it: the prompt and finished blocks keep the keys and values they had then, and with
    `dual` what follows the active block keeps its observations, too. With `"block"`, for dLLMs that attend
    block by block, the active block is exact and what follows it has confidence 0 until it is reached; of
    finished blocks, what the last step revealed keeps `written` 0. Rows of `attention` that are not computed
    are what they were, and 0 where they never were.
    With `{"residual_context": True}` a prediction depends on the step before as well.

    ## Rewards
    0 until the episode ends, then with r the task's score in [0, 1] and n the steps used:

    - `multiplicative` (default): `r * ((L - n + 1) / L) ** alpha`, the form of the paper's released code
    - `multiplicative-paper`: `r * (1 - n / L) ** alpha`, the form of its text: 0 for L steps
    - `additive`: `r - alpha * n / L`
    - `correctness`: `r`

    or what a function `(r, n, L, alpha) -> float` of your own says.

    A step costs the same whatever the budget `max_steps` is: prices are in parts of `L`. A step beyond the
    `L`-th costs nothing more by the first two forms, so that a right answer earns `1 / L ** alpha`, or 0.

    With another `target_steps` than 1 the price is on missing it: n is replaced by the factor by which it
    is missed, `max(n / target_steps, target_steps / n)`. Where `alpha` or `target_steps` is a range, every
    episode draws its own value, log-uniformly; observe it, and one policy learns the whole frontier. Both
    may change between episodes: `reset(options={"alpha": 3.0, "target_steps": 8})` is about one episode,
    `env.unwrapped.alpha = 3.0` or `env.set_wrapper_attr("alpha", 3.0)` about all that start from then on (a
    range is accepted here, too). `block_length` can be set likewise, and nothing else after an environment is
    made: `set_wrapper_attr` refuses other names.

    The price of steps is in the final reward already, so agents should use a discount of 1.

    ## Starting State
    A problem of the task's `split`, drawn by the environment's generator, and a completion of `L` masks.
    `reset(options={"problem": index})` picks the problem. `state()` and `restore(state)` go back to any
    moment of an episode, also of another environment made alike (`docs/planning.md`); `copy.deepcopy`,
    `pickle` and `cloudpickle` copy an environment at any moment, and the copy is independent of it.

    ## Episode End
    *Terminated* when every position is revealed, when `max_steps` steps are used (the budget is part of the
    task, so this is no truncation), or, with `stop_at_eos`, once an end token and everything before it
    are revealed. With `finish="confirm"` a full block is finished only by an action that changes nothing in
    it, and a text up to its end token only by one that changes nothing in that; this action is a step like
    every other. Never truncated, unless you say so by `max_episode_steps` in `gym.make` or `gym.make_vec`;
    then the reward, which comes at the end, is 0. What is scored is the text before the first end token.

    ## Information
    `reset` returns `problem` (its index), `prompt` and `action_mask`; `step` returns `action_mask`
    (`(L,)` int8) and, when the episode ends, `is_success`, `score`, `nfe` (forwards of the dLLM: one
    per step, and one per path an agent looked ahead at), `completion` (text), `problem`,
    `empty_actions`, `ignored_actions` and the task's own metrics; with `actions="set-state"`
    or `"edit"` also `remasks`, the number of tokens taken back, and with `commit_drift=True` that.
    Libraries that want the same keys all the time get them by the wrapper `dllm_gym.FullInfo`.

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
      `None` is full diffusion, one block of length L. A list, such as `[4, 8, 16, None]`, holds those that
      every episode draws its own from, all equally probable; observe it, and one policy learns them all.
      `reset(options={"block_length": 8})` is about one episode. Some dLLMs (SDAR, LLaDA2, Fast-dLLM v2,
      A2D-bd3lm) attend block by block: nothing behind the block being written is seen, so `None` takes
      their own blocks and only divisors of that length are accepted. Most of them count blocks from the
      first token of the prompt, as their publishers do; then the first block of a completion may be
      shorter.
    - `alpha=1.0`: exponent (or factor) of the step price, or a range `(low, high)`, see Rewards.
    - `target_steps=1`: number of steps to aim at, or a range `(low, high)`; with 1, the fewer the better.
    - `reward="multiplicative"`: one of the four names or a function, see Rewards.
    - `reward_metric=None`: r is this metric of the task instead of its score, such as `answer_correct` of
      `arithmetic`, which ignores the derivation. `is_success` and `score` stay what they are.
    - `actions="reveal"`: actions reveal positions, for good; `"set-state"`, `"edit"`: see Taking back.
    - `on_empty="best"`: an action that changes nothing reveals the most confident masked position that may
      be; `"noop"` reveals nothing and spends the step (the dLLM is not run again: nothing has changed).
    - `max_steps=None`: the budget of steps; `None` is `L`.
    - `max_remasks=None`: how often a position may be taken back; `None` is without end.
    - `forbid_remask=False`: with `"set-state"` and `"edit"`, whether nothing may be taken back.
    - `finish="full"`: what is full is finished; `"confirm"`: see Episode End.
    - `commit_drift=False`: infos tell the share of tokens that the dLLM gave more than 0.5 when it wrote them
      and gives less than 0.2 in the whole text, which bounds what taking back can repair. It takes another
      look of the dLLM at every finished text, which is no part of `nfe`.
    - `temperature=0.0`: dLLM token temperature. Above 0 tokens are drawn, with noise from the
      environment's generator, and confidence is the probability of the drawn token.
    - `observe=()`: further observation keys, see above.
    - `top_k=8`: k of the observation `top_k`.
    - `revealed_confidence="one"`: `confidence` is 1 at revealed positions; `"model"`: what the dLLM says.
    - `view="completion"`: every position is shown; `"block"`: the active block only.
    - `stop_at_eos=False`: see Episode End.
    - `group_size=1`: in the vector environment, that many consecutive sub-environments get the same
      sequence of problems. A single environment, and one made of single ones (`vectorization_mode="sync"`),
      takes 1 only.
    - `render_mode=None`: `"ansi"` or `"rgb_array"`.

    ## Vectorized environment
    `gym.make_vec("DLLMUnmask-v0", num_envs=64, autoreset_mode="SameStep")` makes a `UnmaskVectorEnv`,
    which runs one forward for all rows that need one. It takes the same arguments and

    - `autoreset_mode="NextStep"`: also `"SameStep"` or `"Disabled"`, or the `AutoresetMode`.
      `SameStep` wastes no step and suits training; a row that finishes starts its next problem in the
      same forward. `Disabled` leaves finished rows alone until
      `reset(options={"reset_mask": mask, "problem": indices})`.
    - `max_episode_steps=None`: truncates episodes after so many steps.

    ## References
    - M. Jazbec et al., Learning Unmasking Policies for Diffusion Language Models, arXiv 2512.09106.
    - S. Nie et al., Large Language Diffusion Models, arXiv 2502.09992.

    ## Version History
    - v0: first version.
    """

    metadata = METADATA

    def __init__(
        self,
        backend: str | Backend | None = None,
        backend_kwargs: Mapping[str, Any] | None = None,
        task: str | Task = "arithmetic",
        task_kwargs: Mapping[str, Any] | None = None,
        split: str = "train",
        completion_length: int | None = None,
        block_length: BlockLength = None,
        alpha: float | Sequence[float] = 1.0,
        target_steps: float | Sequence[float] = 1.0,
        reward: str | Reward = "multiplicative",
        reward_metric: str | None = None,
        actions: str = "reveal",
        on_empty: str = "best",
        max_steps: int | None = None,
        max_remasks: int | None = None,
        forbid_remask: bool = False,
        finish: str = "full",
        commit_drift: bool = False,
        temperature: float = 0.0,
        observe: Sequence[str] = (),
        top_k: int = 8,
        revealed_confidence: str = "one",
        view: str = "completion",
        stop_at_eos: bool = False,
        group_size: int = 1,
        render_mode: str | None = None,
        **unknown: Never,
    ) -> None:
        checks.refuse_unknown(unknown, (*ARGUMENTS, "render_mode"))
        self.metadata = deepcopy(METADATA)
        self.render_mode = checks.render_mode(render_mode)
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
            actions=actions,
            on_empty=on_empty,
            max_steps=max_steps,
            max_remasks=max_remasks,
            forbid_remask=forbid_remask,
            finish=finish,
            commit_drift=commit_drift,
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

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: As everywhere in Gymnasium.
            options: ``problem``, its index; ``alpha``, ``target_steps`` and ``block_length`` of this episode,
                numbers.

        Raises:
            ValueError: For an unknown option, a problem index the task does not have, a number out of range.
        """
        given = checks.reset_options(options, checks.OPTIONS)
        chosen = checks.chosen_episodes(given, 1, _ROW, self.engine.blocks.fitting)
        super().reset(seed=seed)
        if self.engine.problem_rngs[0] is not self.np_random:
            self.engine.problem_rngs[0] = self.np_random
            self.engine.seeds[0] = self.np_random_seed
            self.engine.noise_rngs[0] = noise_rng(self._noise_seed())
        self.engine.start(_ROW, **chosen)
        self.engine.predict(_ROW)
        observation = self._observation()
        return observation, {
            "problem": int(self.engine.indices[0]),
            "prompt": self.engine.problems[0].prompt,  # type: ignore[union-attr]
            "action_mask": observation["action_mask"].copy(),
        }

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Reveals the selected positions, takes others back, and lets the dLLM predict again.

        Args:
            action: ``(L,)``, 0/1 in any dtype.

        Raises:
            ValueError: If the action is none of bits or has another shape.
            RuntimeError: If no episode is running.
        """
        if self.engine.ended[0]:
            raise RuntimeError("no episode is running; call reset first")
        changed = self.engine.act(_ROW, checks.as_bits(action, (self.engine.length,))[None])
        terminated = bool(self.engine.canvas.finished()[0])
        reward, info = 0.0, dict[str, Any]()
        if terminated:
            self.engine.ended[0] = True
            ((reward, info),) = self.engine.outcomes(_ROW)
        elif changed[0]:
            self.engine.predict(_ROW)
        observation = self._observation()
        info["action_mask"] = observation["action_mask"].copy()
        return observation, reward, terminated, False, info

    def state(self) -> dict[str, Any]:
        """Everything about the episode, as arrays and plain values: from where ``restore`` goes on.

        It is the state of one row of a batched environment, which ``UnmaskVectorEnv.restore`` fans out. What
        wrappers remember is not in it.

        Raises:
            RuntimeError: Before the first reset, and if the dLLM remembers earlier steps (``cache``,
                ``residual_context``); ``copy.deepcopy`` copies such an environment.
        """
        if self.engine.problems[0] is None:
            raise RuntimeError("there is no episode; call reset first")
        return self.engine.state(_ROW)

    def restore(self, state: Mapping[str, Any]) -> Observation:
        """Goes on where ``state`` was taken, as often as you like, if made with the same arguments.

        Args:
            state: Of one row.

        Returns:
            The observation that was last seen there.

        Raises:
            ValueError: For a state of an environment made with other arguments.
        """
        self.engine.restore(state, _ROW)
        self._np_random, self._np_random_seed = self.engine.problem_rngs[0], self.engine.seeds[0]
        return self._observation()

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Sets ``alpha``, ``target_steps`` or ``block_length`` of episodes that start from now on.

        Raises:
            AttributeError: For everything else, ``force`` or not: it would look set.
        """
        self._set(name, value)
        return True

    def action_masks(self) -> BoolArray:
        """``(2L,)`` bool for sb3-contrib's maskable algorithms: allow 0, allow 1, position by position."""
        return two_sided(self.engine.canvas.selectable()[0])

    def render(self) -> Any:
        """The current state as coloured text (``ansi``) or as a picture (``rgb_array``)."""
        if self.render_mode is None:
            gym.logger.warn("render() was called, but the environment was made without a render_mode")
            return None
        return self._render(0, self.render_mode)

    def _noise_seed(self) -> int:
        if self.np_random_seed >= 0:
            return self.np_random_seed
        return int(deepcopy(self.np_random).integers(2**63))  # Gymnasium knows no seed of a user's generator

    def _observation(self) -> Observation:
        return {key: value[0] for key, value in self.engine.observation().items()}
