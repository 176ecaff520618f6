"""Text of unknown origin, made fit to be seen: control characters shown instead of obeyed, tokens of the Hub hidden."""

import html
import os
import re

TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}")  # as the Hub makes them
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
MARKUP = re.compile(r"([\\`*_{}\[\]|#!~])")


def without_tokens(text: str) -> str:
    """The text with what looks like a token of the Hub, or is the one of the environment, replaced by dots."""
    for name in VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= 8:
            text = text.replace(value, "hf_…")
    return TOKEN.sub("hf_…", text)


def clean(text: str) -> str:
    """For a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in without_tokens(text))


def markdown(text: str) -> str:
    """For a line, a heading or a cell of Markdown: neither markup nor HTML."""
    return MARKUP.sub(r"\\\1", html.escape(" ".join(clean(text).split()), quote=False))
