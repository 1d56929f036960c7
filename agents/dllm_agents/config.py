"""The configuration of a training run: a YAML file, a dataclass, and nothing hidden between them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from dllm_gym import yaml_files
from dllm_gym.evaluation.home import settle
from dllm_gym.files import is_finite
from dllm_gym.suggestions import did_you_mean

ALGORITHMS = ("grpo", "ppo", "a2c", "success", "rllib-ppo")
WARM_STARTS = ("success", "hindsight")
DECAYS = ("linear", "cosine")
WORKERS = (
    "num_env_runners", "num_cpus_per_env_runner", "num_gpus_per_env_runner",
    "num_learners", "num_cpus_per_learner", "num_gpus_per_learner",
)  # fmt: skip

_KEEP_PRIOR = 5.0  # that of the published set-state policy
_EVALUATIONS = 10  # of a training, where nothing is said
_LARGEST_FILE = 2**16  # bytes; a hundred times what a configuration takes

# In an installed package the files lie inside it, in a checkout beside it.
CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run.

    Attributes:
        algorithm: ``grpo``, ``ppo``, ``a2c`` or ``success`` (a model of which reveals do harm), with
            Stable-Baselines3; or ``rllib-ppo``, with RLlib on Ray.
        env: Arguments of ``UnmaskEnv``: task, backend, block_length, alpha, ...
        num_envs: Rows decoded at once, by all processes together.
        group_size: Episodes per problem. Above 1 the baseline is the mean reward of the other episodes on
            the same problem; 1 is the stock algorithm with its critic, and all that ``rllib-ppo`` has.
        total_timesteps: Environment steps, summed over rows and processes.
        max_minutes: Stop after this time even if steps are left; ``None`` for no limit. Schedules follow
            whichever comes first, so a run that hits the limit has annealed fully; but no two runs are then
            the same to the bit.
        learning_rate: At the start.
        final_learning_rate: At the end.
        decay: How the learning rate goes from one to the other: ``linear`` or ``cosine``.
        warmup: Share of the training, from 0 to below 1, in which the learning rate first rises from 0.
        algorithm_kwargs: Further arguments of the Stable-Baselines3 algorithm, or of RLlib's
            ``PPOConfig.training``.
        policy: Arguments of ``UnmaskPolicy``: width, heads, layers, features, sampler, ... What its features
            read is observed automatically. ``optimizer_class`` is the name of one of torch's. For
            ``rllib-ppo`` those of ``network_for``, which are sizes and features. With ``actions: set-state``
            or ``edit`` in ``env``, ``keep_prior`` is 5 if nothing else is said.
        workers: Processes of ``rllib-ppo`` and what each may use, by the names RLlib has for them:
            ``num_env_runners`` share ``num_envs``, ``num_learners`` learn (0 of either: in this process),
            ``num_cpus_per_env_runner``, ``num_gpus_per_env_runner``, ``num_cpus_per_learner``,
            ``num_gpus_per_learner``.
        init_from: A saved policy, or the name of a shipped one, to take the first weights from. The new
            policy may read ``alpha``, ``target_steps`` or ``block_length`` besides, as the last of its
            features, and have a critic.
        expert: A strategy such as ``fast-dllm:threshold=0.9``, for one of the next two.
        num_experts: Expert steering (grpo): so many further episodes of every group are the expert's.
        imitation_steps: Warm start: so many of ``total_timesteps`` go to imitating the expert first.
        warm_start: ``success``: a success model is trained first, and its policy is what the algorithm begins
            with; ``hindsight``: the policy of ``init_from``, which knows one speed, is first taught to take
            as many steps as ``target_steps`` tells it; ``None``: the algorithm begins with random weights,
            or those of ``init_from``.
        warm_start_steps: So many of ``total_timesteps`` go to that, at most half of them.
        warm_start_kwargs: Arguments of ``SuccessModel``, or of ``hindsight``.
        dataset: The id of a Minari dataset (``docs/offline.md``). ``success`` is fitted to its episodes and
            decodes none itself, which counts as all of ``total_timesteps``; before other algorithms
            ``imitation_steps`` imitate its best episodes, in the place of the expert.
        expert_block_length: Confines the expert to one block after another.
        eval_every: Environment steps between evaluations; ``None``: a tenth of ``total_timesteps``.
        eval_episodes: Validation problems per evaluation.
        seed: Seeds weights, problems and sampling.
    """

    algorithm: str = "grpo"
    env: Mapping[str, Any] = field(default_factory=dict)
    num_envs: int = 128
    group_size: int = 8
    total_timesteps: int = 800_000
    max_minutes: float | None = None
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.0
    decay: str = "linear"
    warmup: float = 0.0
    algorithm_kwargs: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    workers: Mapping[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    expert: str | None = None
    num_experts: int = 0
    imitation_steps: int = 0
    expert_block_length: int | None = None
    warm_start: str | None = None
    warm_start_steps: int = 60_000
    warm_start_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    eval_every: int | None = None
    eval_episodes: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"unknown algorithm {self.algorithm!r}; choose one of {', '.join(ALGORITHMS)}")
        for name in ("num_envs", "group_size", "total_timesteps", "eval_episodes"):
            check_whole(name, getattr(self, name), 1)
        if self.eval_every is not None:
            check_whole("eval_every", self.eval_every, 1)
        for name in ("num_experts", "imitation_steps"):
            check_whole(name, getattr(self, name), 0)
        if self.decay not in DECAYS:
            raise ValueError(f"unknown decay {self.decay!r}; choose one of {', '.join(DECAYS)}")
        for name in ("learning_rate", "final_learning_rate", "warmup"):
            value = getattr(self, name)
            if not is_finite(value) or not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
        check_deadline_and_seed(self.max_minutes, self.seed)
        for name in ("env", "algorithm_kwargs", "policy", "workers", "warm_start_kwargs"):
            check_mapping(name, getattr(self, name))
        if self.group_size > self.num_envs:
            raise ValueError(f"group_size {self.group_size} must not exceed num_envs {self.num_envs}")
        if self.algorithm == "grpo" and self.group_size == 1:
            raise ValueError("grpo needs a group_size of at least 2, got 1")
        if not isinstance(self.init_from, str | None):
            raise ValueError(f"init_from must be a text or null, got {self.init_from!r}")
        self._check_dataset()
        self._check_expert()
        self._check_warm_start()
        self._check_workers()

    def _check_dataset(self) -> None:
        if not isinstance(self.dataset, str | None):
            raise ValueError(f"dataset must be a text or null, got {self.dataset!r}")
        if self.dataset is not None and (self.algorithm == "success") == bool(self.imitation_steps):
            raise ValueError(
                "a dataset is for success, or for imitation_steps before another algorithm; "
                f"got {self.algorithm} with imitation_steps {self.imitation_steps}"
            )

    def _check_expert(self) -> None:
        if not isinstance(self.expert, str | None):
            raise ValueError(f"expert must be a text or null, got {self.expert!r}")
        if self.expert_block_length is not None:
            check_whole("expert_block_length", self.expert_block_length, 1)
        if self.num_experts and self.algorithm != "grpo":
            raise ValueError(f"num_experts is for grpo, got {self.num_experts} with {self.algorithm}")
        imitated = self.imitation_steps and self.dataset is None
        if (self.expert is not None) != bool(self.num_experts or imitated):
            beside = "" if self.dataset is None else f"; imitated is the dataset {self.dataset!r}"
            raise ValueError(
                f"expert {self.expert!r} goes together with num_experts or imitation_steps, "
                f"got {self.num_experts} and {self.imitation_steps}{beside}"
            )
        if self.imitation_steps > self.total_timesteps:
            raise ValueError(
                f"imitation_steps {self.imitation_steps} exceeds total_timesteps {self.total_timesteps}"
            )
        sampler = self.policy.get("sampler")
        if sampler == "dpls" and (self.expert is not None or self.group_size == 1):
            raise ValueError(
                f"sampler 'dpls' needs groups and no expert, "
                f"got group_size {self.group_size} and expert {self.expert!r}"
            )
        if sampler == "bits" and (self.num_experts or self.group_size == 1):
            raise ValueError(
                f"sampler 'bits' needs groups without experts, "
                f"got group_size {self.group_size} and num_experts {self.num_experts}"
            )

    def _check_warm_start(self) -> None:
        if self.warm_start is None:
            if self.warm_start_kwargs:
                given = dict(self.warm_start_kwargs)
                raise ValueError(f"warm_start_kwargs go with a warm_start, got {given}")
            return
        if self.warm_start not in WARM_STARTS:
            known = ", ".join(WARM_STARTS)
            raise ValueError(f"unknown warm_start {self.warm_start!r}; choose {known} or null")
        check_whole("warm_start_steps", self.warm_start_steps, 1)
        others: dict[str, Any] = {"imitation_steps": self.imitation_steps or None}
        if self.warm_start == "hindsight":
            self._check_hindsight()
        else:
            others["init_from"] = self.init_from
        for name, value in others.items():
            if value is not None:
                raise ValueError(f"a training begins in one way: give warm_start or {name}, not both")
        if self.algorithm not in ("grpo", "ppo", "a2c") or self.policy.get("sampler") == "dpls":
            raise ValueError(
                f"warm_start is for grpo, ppo and a2c with sampler bernoulli or bits, "
                f"got {self.algorithm} with {self.policy.get('sampler', 'bernoulli')}"
            )

    def _check_hindsight(self) -> None:
        told = self.env.get("target_steps")
        if self.init_from is None or not isinstance(told, Sequence):
            raise ValueError(
                "warm_start hindsight needs init_from and a range env.target_steps, such as [2, 24]; "
                f"got {self.init_from!r} and {told!r}"
            )
        if "target_steps" not in self.policy.get("features", ()):
            given = self.policy.get("features")
            raise ValueError(f"warm_start hindsight needs target_steps in policy.features, got {given}")

    def _check_workers(self) -> None:
        if self.algorithm != "rllib-ppo":
            if self.workers:
                raise ValueError(f"workers are for rllib-ppo, got {dict(self.workers)} with {self.algorithm}")
            return
        fixed = {"group_size": 1, "decay": "linear", "expert": None, "dataset": None}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} must be {value!r} for rllib-ppo, got {getattr(self, name)!r}")
        for name, value in self.workers.items():
            if name not in WORKERS:
                raise ValueError(f"unknown workers {name!r}; known: {', '.join(WORKERS)}")
            if name in ("num_env_runners", "num_learners"):
                check_whole(name, value, 0)
            else:
                check_not_negative(name, value)
        if self.num_envs % max(self.workers.get("num_env_runners", 0), 1):
            raise ValueError(
                f"num_envs {self.num_envs} must be a multiple of "
                f"num_env_runners {self.workers['num_env_runners']}, which share them"
            )

    @property
    def eval_interval(self) -> int:
        """Environment steps between evaluations."""
        return self.eval_every or math.ceil(self.total_timesteps / _EVALUATIONS)

    @property
    def policy_arguments(self) -> dict[str, Any]:
        """``policy`` with what follows from ``env``."""
        takes_back = self.env.get("actions", "reveal") != "reveal"
        return {**({"keep_prior": _KEEP_PRIOR} if takes_back else {}), **self.policy}

    @property
    def warm_steps(self) -> int:
        """Environment steps of the warm start."""
        return min(self.warm_start_steps, self.total_timesteps // 2)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for YAML and JSON."""
        return asdict(self)

    def settings(self) -> dict[str, Any]:
        """Every plain value by its name, those inside others with dots: ``env.alpha``."""
        return _flat(self.to_dict())

    def updated(self, **changes: Any) -> TrainConfig:
        """A copy with some fields replaced.

        Raises:
            ValueError: For an unknown field or a value out of range.
        """
        _refuse_unknown(changes)
        return replace(self, **changes)

    def merged(self, *changes: Mapping[str, Any]) -> TrainConfig:
        """A copy with some fields replaced, but within those that hold names and values only what is named.

        Args:
            *changes: New values by field; later ones win.

        Raises:
            ValueError: For an unknown field or a value out of range.
        """
        together: dict[str, Any] = {}
        for change in changes:
            _refuse_unknown(change)
            for name, value in change.items():
                before = together.get(name, getattr(self, name))
                both = isinstance(value, Mapping) and isinstance(before, Mapping)
                together[name] = {**before, **value} if both else value
        return replace(self, **together)

    def with_settings(self, settings: Iterable[str]) -> TrainConfig:
        """A copy with some values replaced, the way back from ``settings``.

        Args:
            settings: ``name=value``; the value as in YAML, names of those inside others with dots, such as
                ``env.alpha=2``.

        Raises:
            ValueError: For something else, an unknown field or a value out of range.
        """
        content = with_settings(self.to_dict(), settings)
        return TrainConfig().updated(**content)

    def moved(self, place: Mapping[str, Any]) -> TrainConfig:
        """A copy that trains elsewhere; what belongs to the former task is left behind.

        Args:
            place: Arguments of ``UnmaskEnv``: a ``task``, or all that a member of the suite has.
        """
        env = {"block_length": None, **settle(place, {"task": "arithmetic", **self.env})}
        place = {key: value for key, value in env.items() if value is not None or key == "block_length"}
        rest = {key: value for key, value in self.env.items() if key not in env}
        return self.updated(env={**rest, **place})


def with_settings(content: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """The content of a configuration with some values replaced, in place: see ``TrainConfig.with_settings``.

    Raises:
        ValueError: For a setting that is none.
    """
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"write name=value, such as env.alpha=2, got {setting!r}")
        *way, last = name.strip().split(".")
        place = content
        for key in way:
            if not isinstance(place.get(key), dict):
                place[key] = {}
            place = place[key]
        place[last] = _with_numbers(yaml_files.parse_yaml(text, setting))
    return content


def find_config(name: str | Path) -> Path:
    """The path of a configuration: a file, or the name of one that comes with the package.

    Raises:
        FileNotFoundError: If there is neither.
    """
    return find_shipped(name, "configuration", CONFIG_FOLDERS, without=("studies", "posttrain"))


def find_shipped(name: str | Path, kind: str, folders: Sequence[Path], without: Sequence[str] = ()) -> Path:
    """The path of a YAML file, or of one that comes with the package, by its name.

    Args:
        name: A path; or the place in ``folders``, without the ending.
        kind: What it is, for the message.
        folders: Where to look.
        without: Folders in them that hold files of other kinds.

    Raises:
        FileNotFoundError: If there is neither.
    """
    places = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in folders
        for path in sorted(folder.rglob("*.yaml"))
    }
    shipped = {place: path for place, path in places.items() if Path(place).parts[0] not in without}
    for path in (Path(name), shipped.get(str(name))):
        if path is not None and path.is_file():
            return path
    hint, known = did_you_mean(str(name), shipped), ", ".join(shipped)
    raise FileNotFoundError(f"no {kind} {str(name)!r}{hint}; known: {known}; or give the path of a YAML file")


def load_config(path: str | Path) -> TrainConfig:
    """Reads a configuration file; numbers such as ``1e-3`` may be written the way Python reads them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: What ``read_yaml`` raises, and for unknown fields or values out of range.
    """
    content = read_yaml(path)
    _refuse_unknown(content)
    return TrainConfig(**content)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The fields and values of a YAML file that somebody else wrote; ``1e-3`` is a number.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For a file that is too long or malformed, keys that are there twice and aliases.
    """
    content: dict[str, Any] = _with_numbers(yaml_files.read_yaml(path, "configuration", _LARGEST_FILE))
    return content


class Described(Protocol):
    """A configuration, of whatever."""

    def to_dict(self) -> dict[str, Any]:
        """Its fields."""
        ...


def plain(config: Described) -> dict[str, Any]:
    """A configuration as it comes back from YAML: tuples are lists there.

    Raises:
        ValueError: If it holds anything else than plain values.
    """
    try:
        values: dict[str, Any] = yaml.safe_load(yaml.dump(config.to_dict(), Dumper=Dumper))
    except yaml.YAMLError as error:
        raise ValueError(f"a configuration must hold plain values: {error}") from error
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            pairs |= _flat(value, f"{prefix}{key}.")
        else:
            pairs[f"{prefix}{key}"] = value
    return pairs


class Dumper(yaml.SafeDumper):
    """Writes what ``load_config`` reads: a value that is there twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always."""
        return True


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises a ValueError that names the argument unless it is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_not_negative(name: str, value: Any) -> None:
    """Raises a ValueError that names the argument unless it is a finite number of at least 0."""
    if not is_finite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_deadline_and_seed(max_minutes: Any, seed: Any) -> None:
    """Raises a ValueError unless they are what these fields of a configuration may be."""
    if max_minutes is not None and not (is_finite(max_minutes) and max_minutes > 0):
        raise ValueError(f"max_minutes must be positive and finite, or null, got {max_minutes!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, got {seed!r}")


def check_mapping(name: str, value: Any) -> None:
    """Raises a ValueError that names the argument unless it is a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must hold names and values, got {value!r}")


def _with_numbers(value: Any) -> Any:
    """YAML 1.1 takes ``1e-3`` for a text; make it the number that was meant."""
    if isinstance(value, dict):
        return {key: _with_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_numbers(inner) for inner in value]
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+", value, re.IGNORECASE):
        return float(value)
    return value


def _refuse_unknown(changes: Mapping[str, Any]) -> None:
    known = [f.name for f in dataclasses.fields(TrainConfig)]
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise ValueError(f"unknown configuration fields {unknown}; known: {', '.join(known)}")
