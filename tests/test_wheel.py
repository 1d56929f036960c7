"""The package as an index gets it: what its page says, and that nothing is missing."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser

import pytest
import yaml
from test_docs import ROOT, read_page

import dllm_gym

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_versions_agree():
    citation = yaml.safe_load(read_page("CITATION.cff"))
    assert PROJECT["version"] == dllm_gym.__version__ == citation["version"]


def test_all_addresses_are_in_the_repository():
    assert {"Repository", "Documentation", "Changelog", "Issues"} <= set(PROJECT["urls"])
    assert all(address.startswith(REPOSITORY) for address in PROJECT["urls"].values())


def test_links_of_the_index_page_need_no_file_beside_it():
    """Pictures are files, everything else pages about files, and all of them exist."""
    index_page = runpy.run_path(str(ROOT / "setup.py"))["index_page"]
    page = index_page(read_page("README.md"), "https://host/us", "1.2.3")
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert targets
    assert all(target.startswith(("https://", "#")) for target in targets)
    ours = re.findall(r"(!?)\[[^]]*\]\(https://host/us/(raw|blob)/v1\.2\.3/([^)#]+)", page)
    assert len(ours) > 10
    for picture, kind, path in ours:
        assert kind == ("raw" if picture else "blob")
        assert (ROOT / path).exists()
    text = "[a](b.md#c) ![d](e.png) [![f](g.svg)](h) [i](#j)"
    expected = "[a](R/blob/v0/b.md#c) ![d](R/raw/v0/e.png) [![f](R/raw/v0/g.svg)](R/blob/v0/h) [i](#j)"
    assert index_page(text, "R", "0") == expected


@pytest.mark.slow
def test_the_wheel_says_what_it_is(wheel):
    found = metadata(wheel)
    assert (found["Name"], found["Version"]) == ("dllm-gym", dllm_gym.__version__)
    assert found["License-Expression"] == "Apache-2.0"
    assert set(found.get_all("Project-URL")) == {f"{name}, {at}" for name, at in PROJECT["urls"].items()}
    assert found["Description-Content-Type"] == "text/markdown"
    page = found.get_payload()
    assert page.lstrip().startswith("# dllm_gym")
    assert f"({REPOSITORY}/raw/v{dllm_gym.__version__}/docs/film.gif)" in page


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(wheel):
    expected = {
        str(path.relative_to(parent))
        for parent, top in (
            (ROOT, "dllm_gym"),
            (ROOT / "agents", "dllm_agents"),
            (ROOT / "agents", "configs"),
        )
        for path in (parent / top).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    expected = {re.sub("^configs/", "dllm_agents/configs/", name) for name in expected}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected
    assert wheel.stat().st_size < 8_500_000  # seven dLLMs, ten policies, seven datasets


@pytest.mark.slow
def test_an_index_would_show_it(wheel):
    pytest.importorskip("twine")
    sdist = next(wheel.parent.glob("*.tar.gz"))
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
