"""Reads Markdown tables, whose source is aligned, without counting spaces."""

import re


def squeezed(text: str) -> str:
    """The text with one space wherever there are several."""
    return re.sub(" +", " ", text)
