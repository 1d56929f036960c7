"""The one thing about the package that is made when it is built: the page of a package index.

README.md has links between files, as a checkout and the documentation want them. An index shows the page
alone, so there they lead to this version's files in the repository, pictures to the files themselves.
Everything else is in ``pyproject.toml``.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")
PICTURES = (".gif", ".png", ".svg")


def index_page(text: str, repository: str, version: str) -> str:
    """``text`` with links that need no other file.

    Args:
        text: Markdown.
        repository: Address of the repository.
        version: Its tag there is ``v`` and this.
    """

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[1].endswith(PICTURES) else "blob"
        return f"]({repository}/{kind}/v{version}/{link[1]})"

    return LINK.sub(absolute, text)


if __name__ == "__main__":
    PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    README = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=index_page(README, PROJECT["urls"]["Repository"], PROJECT["version"]),
        long_description_content_type="text/markdown",
    )
