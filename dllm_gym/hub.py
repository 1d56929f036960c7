"""A hub that may be out of reach: asked once, and what goes wrong on the way told as what it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def connection() -> Iterator[None]:
    """What the hub's client raises where no answer comes becomes a ``ConnectionError``.

    Raises:
        ConnectionError: If the hub cannot be reached.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.HTTPError as error:  # type: ignore[attr-defined]
        if isinstance(error, OSError):  # an answer, if not the one that was hoped for
            raise
        raise ConnectionError(f"the hub cannot be reached: {error}") from error


def ask_once(repo_id: str, name: str) -> None:
    """Asks the hub for a file unless the file is in its cache; a download would ask many times, for a minute.

    Args:
        repo_id: ``owner/name`` of a model.
        name: Of a file of it.

    Raises:
        OSError: If the hub has no such file, or cannot be reached.
        ValueError: If that is no name of a model.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repo_id, name), str):
        with connection():
            get_hf_file_metadata(hf_hub_url(repo_id, name))
