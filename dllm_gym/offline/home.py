"""Where Minari keeps its datasets, and how they are called."""

from __future__ import annotations

from pathlib import Path


def folder_of(id: str) -> Path:
    """Where the dataset of that id lies, or would: below ``MINARI_DATASETS_PATH`` or ``~/.minari/datasets``.

    Raises:
        ImportError: Without Minari and h5py.
        ValueError: For what is no id of Minari's with a version.
    """
    try:
        import h5py  # noqa: F401  # the format the datasets have
        from minari.dataset.minari_dataset import DATASET_ID_RE
        from minari.storage.datasets_root_dir import get_dataset_path
    except ImportError as error:
        raise ImportError("datasets need Minari: pip install 'dllm-gym[minari]'") from error
    match = DATASET_ID_RE.fullmatch(id)
    if match is None or match["version"] is None:
        raise ValueError(f"a dataset is called like dllm-gym/sudoku-mixed-v0, got {id!r}")
    return Path(get_dataset_path(id)) / "data"
