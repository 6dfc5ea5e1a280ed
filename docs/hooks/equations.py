"""Equations as MathML, made when the site is built: no script, no network, and text to a screen reader.

Few machines have a font for mathematics, so that the site brings one: of STIX Two Math what the equations need.
"""

import html
import re
from importlib.resources import files
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# Browsers leave the space about the name of a function to the author, and put some about a bar, which is no operator.
NAME, THIN = "<mi>(?:log|exp|cos|tan|tanh|det)</mi>", '<mspace width="0.167em" />'
SPACES = (
    (re.compile(r'<mo movablelimits="true">det</mo>'), "<mi>det</mi>"),
    (re.compile(rf"({NAME})(?=<m(?:i|n|row|sub|sup|subsup|frac)>)"), rf"\1{THIN}"),
    (re.compile(rf"</mfrac>(?={NAME})"), f"</mfrac>{THIN}"),
    (re.compile(r'<mo stretchy="false">&#x0007C;</mo>'), '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>'),
)
FONT = files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"
# A letter of a formula is slanted by the browser, which takes another character, and a root is a sign that no text has.
letters = {0x221A, *range(0x1D400, 0x1D800)}


def on_page_content(content: str, page: Page, **_: object) -> str:
    """The page with every equation in MathML."""

    def mathml(match: re.Match[str]) -> str:
        block = match[2] == "["
        try:
            made = convert(html.unescape(match[3]).strip(), display="block" if block else "inline")
        except Exception as error:
            raise ValueError(f"{page.file.src_uri}: the equation {match[3]!r} is no LaTeX that can be read.") from error
        letters.update(map(ord, re.sub("<[^>]*>", "", html.unescape(made))))
        for wrong, right in SPACES:
            made = wrong.sub(right, made)
        return f'<div class="equation">{made}</div>' if block else made

    return EQUATION.sub(mathml, content)


def on_post_build(config: MkDocsConfig) -> None:
    """Writes the font, which stylesheets/extra.css names."""
    font = TTFont(str(FONT))
    options = subset.Options(flavor="woff", layout_features=["*"], notdef_outline=True)
    cut = subset.Subsetter(options)
    cut.populate(unicodes=letters)
    cut.subset(font)
    subset.save_font(font, str(Path(config.site_dir) / "stylesheets" / "math.woff"), options)
