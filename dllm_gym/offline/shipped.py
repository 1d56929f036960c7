"""The small datasets that come with the package: the files that Minari makes of them, packed."""

from __future__ import annotations

import io
import lzma
import sys
import tarfile
import tempfile
from pathlib import Path

from dllm_gym.backends import ASSETS
from dllm_gym.files import naming, write_bytes

PACKED = ASSETS / "datasets"
NAMESPACE, ENDING = "dllm-gym", ".tar.xz"
LARGEST = 64 * 2**20  # bytes of all files, unpacked
_MEMORY = 128 * 2**20  # bytes that unpacking may take besides; what is packed here takes 65 MiB
_FILES = ("metadata.json", "main_data.hdf5")


def shipped_datasets() -> dict[str, Path]:
    """The datasets that come with the package, by id, and the files they are packed in."""
    paths = sorted(PACKED.glob(f"*{ENDING}"))
    return {f"{NAMESPACE}/{path.name.removesuffix(ENDING)}": path for path in paths}


def pack(folder: Path) -> bytes:
    """What ``folder_of`` holds of a dataset as one file; of the same files the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in _FILES:
            content = (folder / name).read_bytes()
            entry = tarfile.TarInfo(name)  # of nobody, and of no time
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def unpack(packed: Path, target: Path) -> None:
    """Puts a packed dataset where Minari keeps its own, whole or not at all, and says so.

    Args:
        packed: The file.
        target: The dataset's folder, which has the folder ``data``. If somebody else makes it meanwhile, it
            stays as it is.

    Raises:
        OSError: If it cannot be written.
        ValueError: If the file is damaged, too large, or holds anything but the two files of a dataset.
    """
    contents = _unpacked(packed)
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # Minari does not look into folders that are hidden
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            arrived = Path(scratch) / target.name
            for name, content in contents.items():
                write_bytes(arrived / "data" / name, content)
            try:
                arrived.replace(target)
            except OSError:
                if not target.is_dir():
                    raise
                return
    print(f"unpacked the dataset that comes with the package into {target}", file=sys.stderr)


def _unpacked(path: Path) -> dict[str, bytes]:
    """The files by name, never more than ``LARGEST`` bytes."""
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
        content = unpacker.decompress(path.read_bytes(), LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it unfolds to more than {LARGEST} bytes")
        if not unpacker.eof:
            raise ValueError("it is cut")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            members = archive.getmembers()
            # a sparse file may be larger than what holds it
            names = tuple(one.name for one in members if one.isreg() and not one.issparse())
            if names != _FILES or len(members) > len(names):
                held = ", ".join(one.name for one in members)
                raise ValueError(f"it must hold the files {' and '.join(_FILES)}, got {held or 'nothing'}")
            return {one.name: archive.extractfile(one).read() for one in members}  # type: ignore[union-attr]
    except (lzma.LZMAError, tarfile.TarError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no packed dataset: {error}") from error
