"""Sphinx's configuration; `make docs` writes the site to build/site.

The repository's root is the source folder, so that README, changelog and model cards are pages as they are
and links between Markdown files mean the same here and on GitHub. Reading the site needs no network.
"""

import re
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from dllm_gym import __version__

project = "dllm_gym"
author = "The dllm_gym developers"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "benchmarks/results/*.md", "dllm_gym/assets/*/README.md"]
exclude_patterns = [".*", "build", "runs"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
maximum_signature_line_length = 88
html_theme = "furo"
html_title = f"dllm_gym {__version__}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_copyright = False
# what a browser fetches by itself: pictures, scripts, style sheets, fonts
LOADED = re.compile(r"""(\b(src|srcset)=|<link[^>]* href=|\burl\(|@import )\s*["']?(https?:)?//[^"')\s]*""")


def setup(app: Sphinx) -> None:
    """Adds what Sphinx has no option for."""
    # MathML needs neither script nor font: browsers draw it themselves
    renderer = inline_math, None
    app.add_html_math_renderer("mathml", inline_renderers=renderer, block_renderers=(displayed_math, None))
    app.connect("source-read", read_page)
    app.connect("build-finished", finish)


def inline_math(translator: nodes.NodeVisitor, node: nodes.Node) -> None:
    """Writes a formula inside a line."""
    translator.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def displayed_math(translator: nodes.NodeVisitor, node: nodes.Node) -> None:
    """Writes a formula on a line of its own."""
    translator.body.append(mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def mathml(formula: str, as_block: bool = False) -> str:
    """The formula as docutils writes it, but with the space that TeX leaves after a logarithm."""
    return tex2mathml(formula.replace(r"\log ", r"\log\, "), as_block=as_block)


def read_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Gives pages what they need here and not on GitHub, or takes it away."""
    if page.startswith("benchmarks/results/"):  # tables, written without a title
        source[0] = f"# {Path(page).name.replace('_', ' ').capitalize()}\n\n{source[0]}"
    elif page == "README":  # badges are served by other hosts
        source[0] = "\n".join(line for line in source[0].splitlines() if not line.startswith("[!["))


def finish(app: Sphinx, error: Exception | None) -> None:
    """Leads from the folder to the first page, and refuses a site that needs the network."""
    if error is not None:
        return
    front = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
    Path(app.outdir, "index.html").write_text(front, encoding="utf-8")
    for path in Path(app.outdir).rglob("*.*"):
        found = path.suffix in (".html", ".css") and LOADED.search(path.read_text(encoding="utf-8"))
        if found:
            raise ExtensionError(f"{path} loads something from another host: {found[0]}")
