"""Sphinx settings of the slide decks; ``python -m tools.slides`` builds them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

project = "Attention, from the ground up: slides"
author = "The attn-course authors"
copyright = "2026, the attn-course authors"
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # the package's own spelling
    "sphinx_revealjs",
    "tools.slides",
]
exclude_patterns = ["_figures", "_static"]
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
# Hidden slides have no font to match: without this, formulas come out in different sizes.
mathjax3_config = {"chtml": {"matchFontHeight": False}, "options": {"enableMenu": False}}

html_copy_source = False
html_use_index = False
html_show_sourcelink = False

revealjs_style_theme = "white"
revealjs_static_path = ["_static"]
revealjs_css_files = ["slides.css"]
revealjs_js_files = ["print.js"]
revealjs_script_plugins = [
    {"name": "RevealNotes", "src": "revealjs/plugin/notes/notes.js"},
    {"name": "RevealHighlight", "src": "revealjs/plugin/highlight/highlight.js"},
]
revealjs_script_conf = {
    "width": 1280,
    "height": 720,
    "margin": 0,
    "center": False,
    "controls": False,
    "hash": True,
    "slideNumber": "c/t",
    "transition": "none",
    "pdfMaxPagesPerSlide": 1,
    "pdfSeparateFragments": False,
    "scrollActivationWidth": None,
}
