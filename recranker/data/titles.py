"""Titles and genres as plain, printable, single-line text that is safe to put into a prompt."""

import html
import unicodedata


def clean_title(text: str, max_characters: int) -> str:
    """``text`` without HTML entities, control characters and runs of spaces, in Unicode form NFKC, cut to length.

    Entities go first, because one may stand for a control character or a line break. Line breaks and tabs become
    spaces; all other characters of the categories C* (control, format, private, unassigned) vanish.
    """
    text = unicodedata.normalize("NFKC", html.unescape(text))
    text = "".join(one for one in " ".join(text.split()) if not unicodedata.category(one).startswith("C"))
    return " ".join(text.split())[:max_characters].rstrip()
