"""Cleaning of text (HTML, control characters, Unicode, white space), and what makes two texts the same."""

import html
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from .schema import Clean

BLOCKS = (
    "address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset figcaption figure"
    " footer form frame frameset h1 h2 h3 h4 h5 h6 head header hr html legend li main menu nav noframes noscript ol"
    " optgroup option p pre section select summary table tbody td template tfoot th thead title tr ul"
)
INLINE = (
    "a abbr acronym applet area audio b base basefont bdi bdo big button canvas cite code col colgroup data datalist"
    " del dfn em embed font i iframe img input ins kbd label link map mark meta meter object output param picture"
    " progress q rp rt ruby s samp script slot small source span strike strong style sub sup svg template textarea"
    " time track tt u var video wbr"
)
# Only HTML's own elements, so that vector<int> and <you@example.org> stay. No quoted value holds "<", so each try at a
# tag ends at the next one and hostile text costs linear time.
TAG = re.compile(
    rf"""</?(?:(?P<block>{"|".join(BLOCKS.split())})|{"|".join(INLINE.split())}|!doctype)"""
    r"""(?=[\s/>])(?:[^<>"']++|"[^"<]*+"|'[^'<]*+')*+>""",
    re.IGNORECASE,
)
HIDDEN = re.compile(r"<!--|<(script|style)(?=[\s>])", re.IGNORECASE)
LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85]")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
WIDE_SPACE = (
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
BLANK_LINES = re.compile(r"\n{3,}")


def strip_html(text: str) -> str:
    """Without comments, scripts, styles and tags; block elements end a line; entities decoded, once."""
    if "<" in text:
        text = TAG.sub(lambda tag: "\n" if tag["block"] else "", _without_hidden(text))
    return html.unescape(text) if "&" in text else text


def _without_hidden(text: str) -> str:
    kept, at, unclosed = [], 0, set()
    while start := HIDDEN.search(text, at):
        kept.append(text[at : start.start()])
        name = start[1].lower() if start[1] else ""
        closing = re.compile(rf"</{name}\s*>" if name else "-->", re.IGNORECASE)
        end = None if name in unclosed else closing.search(text, start.end())
        if end is None:  # looked for once a kind: many that are never closed would cost quadratic time
            unclosed.add(name)
            kept.append(start[0])
        at = end.end() if end else start.end()
    return "".join([*kept, text[at:]])


def strip_control(text: str) -> str:
    """Without control characters (Unicode category Cc) but newline and tab; other line ends become newlines."""
    return CONTROL.sub("", LINE_ENDS.sub("\n", text)) if CONTROL.search(text) else text


def normalize(form: str) -> Callable[[str], str]:
    """Unicode normalisation to NFC or NFKC."""

    def apply(text: str) -> str:
        return text if text.isascii() else unicodedata.normalize(form, text)  # type: ignore[arg-type]

    return apply


def fold_space(text: str) -> str:
    """Runs of white space to one space, of blank lines to one; none at the ends of lines or of the text."""
    lines = "\n".join([" ".join(line.split()) for line in text.split("\n")])
    return BLANK_LINES.sub("\n\n", lines).strip("\n")


def essence(value: Any) -> bytes:
    """What two texts must share to count as the same: all but white space, in NFC, as UTF-8.

    Of a list or an object that of its parts; of any other value its text.
    """
    if isinstance(value, (list, dict)):
        parts = [part for item in sorted(value.items()) for part in item] if isinstance(value, dict) else value
        return b"\1".join(map(essence, parts))
    text = str(value)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        if any(space in text for space in WIDE_SPACE):
            text = "".join(text.split())
    return text.encode().translate(None, b"\t\n\v\f\r\x1c\x1d\x1e\x1f ")


class Cleaner:
    """The steps that the options name, over the strings in a value (text, a list of tokens, a dict of texts).

    Attributes:
        counts: for each step that is on, the strings it changed (`html_changed`) and by how many characters it made
            them shorter (`html_chars`).
    """

    def __init__(self, options: Clean):
        steps = {
            "html": strip_html if options.html else None,
            "control": strip_control if options.control else None,
            "unicode": normalize(options.unicode) if options.unicode else None,
            "whitespace": fold_space if options.whitespace else None,
        }
        self.steps = [(name, step) for name, step in steps.items() if step]
        self.counts = {f"{name}_{what}": 0 for name, _ in self.steps for what in ("changed", "chars")}

    def __call__(self, value: Any) -> Any:
        """The value, cleaned; what is not text stays."""
        if isinstance(value, list):
            return [self(item) for item in value]
        if isinstance(value, dict):
            return {key: self(item) for key, item in value.items()}
        if not isinstance(value, str):
            return value
        for name, step in self.steps:
            cleaned = step(value)
            if cleaned != value:
                self.counts[f"{name}_changed"] += 1
                self.counts[f"{name}_chars"] += len(value) - len(cleaned)
                value = cleaned
        return value


def length(value: Any) -> int:
    """Characters of a text, or of all texts in a list or an object, such as the words of a conversation."""
    if isinstance(value, (list, dict)):
        return sum(map(length, value.values() if isinstance(value, dict) else value))
    return len(value) if isinstance(value, str) else 0
