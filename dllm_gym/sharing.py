"""Policies and small dLLMs to and from a hub: ``push`` and ``pull``.

Nothing happens by itself: the hub is asked only where a user calls one of the two with the name of a
repository. What travels is safetensors, JSON and a card. What is pulled is a directory of such files, read
by the same loaders as any other; a repository's further files stay where they are.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_gym.hub import connection
from dllm_gym.plugins import plugins

CARD = "README.md"
MAX_BYTES = 1 << 30  # of weights: this is for what was trained here
MAX_TEXT_BYTES = 16 << 20  # of JSON or a card, which are parsed as a whole


@dataclass(frozen=True)
class Kind:
    """Something that can be shared.

    Attributes:
        name: What it is called in messages.
        needs: Names of the files it consists of.
        may_have: Names of further files that go along; the card is always among them.
        check: Given a directory, loads what is in it; raises ``ValueError`` or ``OSError`` if that fails.
        card: Given a directory, the repository's name and a licence, writes a card; ``None`` if one has to be
            there already.
    """

    name: str
    needs: tuple[str, ...]
    may_have: tuple[str, ...]
    check: Callable[[Path], None]
    card: Callable[[Path, str, str], str] | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Everything that travels, if it is there."""
        return (*self.needs, *self.may_have, CARD)


def push(
    path: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Uploads a policy, or a dLLM made by ``dllm-gym pretrain``, as one commit.

    A repository that does not exist is made; an existing one of the same kind gets a new version. The
    ``README.md`` of the directory is the card; a policy that has none gets one with its training command,
    seed and metrics.

    Args:
        path: The directory of a policy, training run (its best policy is taken) or dLLM.
        repo_id: ``owner/name``.
        license: For a new card, an identifier of the hub's, such as ``apache-2.0``.
        private: Whether a new repository is private.
        token: Of a user who may write there; ``None`` takes that of ``hf auth login`` or ``HF_TOKEN``.
        endpoint: Address of the hub; ``None`` takes ``HF_ENDPOINT`` or huggingface.co.

    Returns:
        The address of the commit.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ValueError: If what is there does not load, is too large, or there is no licence or token; if the
            repository holds something else, or its name is none.
        OSError: If the hub refuses or cannot be reached.
    """
    import huggingface_hub as hub

    _check_name(repo_id)
    directory, kind = _find(Path(path))
    names = [name for name in kind.files if (directory / name).is_file()]
    _check_sizes({name: (directory / name).stat().st_size for name in names}, str(directory))
    card = _card(directory, kind, repo_id, license)
    kind.check(directory)
    token = token or hub.get_token()
    if token is None:
        raise ValueError("pushing needs a token that may write: hf auth login, HF_TOKEN, or token=")
    api = hub.HfApi(endpoint, token=token, library_name="dllm-gym")
    with _clear_errors(repo_id, None):
        api.create_repo(repo_id, private=private, exist_ok=True)
        there = [file.rfilename for file in api.model_info(repo_id).siblings or ()]
        if there and set(there) - {".gitattributes", CARD} and _kind_among(there) != kind:
            raise ValueError(f"{repo_id} holds something else than a {kind.name}: {_shown(there)}")
        content: dict[str, Any] = {name: directory / name for name in names if name != CARD}
        commit = api.create_commit(
            repo_id,
            [hub.CommitOperationAdd(name, data) for name, data in (content | {CARD: card.encode()}).items()],
            commit_message=f"A {kind.name}, pushed by dllm-gym",
        )
    return commit.commit_url


def pull(
    repo_id: str,
    directory: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Downloads what ``push`` uploaded into a directory, which is then a policy or dLLM like any other.

    Only files that a policy or dLLM consists of are downloaded. They are loaded once before the directory
    appears, so that one that is there is sound.

    Args:
        repo_id: ``owner/name``.
        directory: Must not exist, or be empty.
        revision: Branch, tag or commit; ``None`` is the newest commit of the main branch.
        token: For a private repository; see ``push``.
        endpoint: See ``push``.

    Returns:
        The commit the files are of. Give it as ``revision`` to get the same files again.

    Raises:
        FileExistsError: If there is something in ``directory``.
        ValueError: If there is no such repository or revision, it holds neither a policy nor a dLLM, or what
            it holds is too large or does not load.
        OSError: If the hub refuses or cannot be reached.
    """
    import huggingface_hub as hub

    _check_name(repo_id)
    target = Path(directory)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} is not empty; choose another directory")
    api = hub.HfApi(endpoint, token=token, library_name="dllm-gym")
    with _clear_errors(repo_id, revision):
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    kind = _kind_among(sizes)
    if kind is None or info.sha is None:
        wanted = "; ".join(f"a {kind.name} has {', '.join(kind.needs)}" for kind in _kinds())
        raise ValueError(f"{repo_id} holds nothing to pull ({wanted}); it has {_shown(sizes)}")
    names = [name for name in kind.files if name in sizes]
    _check_sizes({name: sizes[name] for name in names}, repo_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        arrived = Path(scratch) / target.name
        arrived.mkdir()
        for name in names:
            with _clear_errors(repo_id, revision):
                file = api.hf_hub_download(
                    repo_id, name, revision=info.sha, local_dir=Path(scratch) / "download"
                )
            shutil.move(file, arrived / name)
        _check_sizes({name: (arrived / name).stat().st_size for name in names}, repo_id)
        try:
            kind.check(arrived)
        except Exception as error:  # whatever a stranger's file can bring a parser to
            raise ValueError(f"the {kind.name} that {repo_id} holds does not load: {error}") from error
        arrived.replace(target)
    return info.sha


def _kinds() -> list[Kind]:
    return [DLLM, *(kind for plugin in plugins() for kind in plugin.shared_kinds())]


def _kind_among(names: Collection[str]) -> Kind | None:
    return next((kind for kind in _kinds() if set(kind.needs) <= set(names)), None)


def _find(path: Path) -> tuple[Path, Kind]:
    for directory in (path, path / "best"):
        if directory.is_dir():
            kind = _kind_among([file.name for file in directory.iterdir() if file.is_file()])
            if kind is not None:
                return directory, kind
    wanted = "; ".join(f"a {kind.name} has {', '.join(kind.needs)}" for kind in _kinds())
    raise FileNotFoundError(f"nothing to push at {path}: {wanted}")


def _card(directory: Path, kind: Kind, repo_id: str, license: str | None) -> str:
    if (directory / CARD).is_file():
        if license is not None:
            raise ValueError(f"{directory / CARD} is the card, so the licence goes in there, not {license!r}")
        return (directory / CARD).read_text(encoding="utf-8")
    if kind.card is None:
        raise ValueError(f"{directory} has no {CARD}, which a {kind.name} brings along")
    if license is None or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise ValueError(
            "say under which licence others may use it, by an identifier of the hub's such as "
            f"license='apache-2.0'; got {license!r}"
        )
    return kind.card(directory, repo_id, license)


def _check_name(repo_id: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"a repository is named owner/name, got {repo_id!r}")


def _check_sizes(sizes: Mapping[str, int | None], where: str) -> None:
    for name, size in sizes.items():
        limit = MAX_BYTES if name.endswith(".safetensors") else MAX_TEXT_BYTES
        if size is None or size > limit:
            raise ValueError(f"{name} of {where} has {size} bytes; at most {limit} are accepted")


def _shown(names: Collection[str]) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "no files"


@contextmanager
def _clear_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    try:
        with connection():
            yield
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"the hub shows no model {repo_id!r}: there is none, or it takes a token that may see it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo_id} has no revision {revision!r}") from error
    except RuntimeError as error:  # how huggingface_hub reports a large file that did not go through
        raise OSError(f"{error} {error.__cause__ or ''}") from error


def _check_dllm(directory: Path) -> None:
    from dllm_gym.backends.quality import HEAD
    from dllm_gym.backends.tokenizing import failures_of
    from dllm_gym.backends.transformers_backend import TransformersBackend
    from dllm_gym.trained import trained_length

    trained_length(directory)  # reads the record
    _check_claimed_size(directory)
    backend = TransformersBackend(directory, device="cpu")
    # some faults of a tokenizer or chat template show in use only
    with failures_of(f"the tokenizer of {directory}"):
        backend.decode(backend.tokenizer.encode(" ".join(backend.tokenizer.get_vocab())))
    backend.encode_prompt("")
    if (directory / HEAD).is_file():
        _ = backend.quality_head  # reads it


def _check_claimed_size(directory: Path) -> None:
    """Refuses a ``config.json`` that would have more allocated than the weights beside it can fill."""
    import torch
    import transformers
    from safetensors import safe_open

    from dllm_gym.backends.families import Layout, family_of
    from dllm_gym.backends.loading import read_config

    config = read_config(directory)
    family = family_of(config, str(directory))
    if not isinstance(family, Layout):
        raise ValueError(f"{directory} is of the family {family.name}, which dllm-gym pretrain does not make")
    with safe_open(directory / "model.safetensors", framework="pt") as weights:
        held = [math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()]  # noqa: SIM118
    translated = family.translate(config)
    claimed = math.inf
    if translated.num_hidden_layers <= len(held):
        with torch.device("meta"):
            model = getattr(transformers, family.model_class)(translated)
        claimed = sum(parameter.numel() for parameter in model.parameters())
    if claimed != sum(held):
        raise ValueError(f"{directory}: config.json asks for {claimed} weights, there are {sum(held)}")


DLLM = Kind(
    "dLLM",
    ("config.json", "model.safetensors", "pretraining.json", "tokenizer.json", "tokenizer_config.json"),
    ("special_tokens_map.json", "posttraining.json", "quality_head.safetensors", "quality_head.json"),
    _check_dllm,
)
