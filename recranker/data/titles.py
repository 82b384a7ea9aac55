"""Titles and genres as plain, printable, single-line text that is safe to put into a prompt."""

import html
import re
import unicodedata

_TRAILING_ARTICLE = re.compile(r"([^()]+), (The|An|A|Le|La|Les|L'|Il|El|Los|Las|Das|Der|Die|Det|O)(?=\)| \(|$)")
_DATED = re.compile(r"(.*) \((\d{4})\)(?: \(V\))?")


def clean_title(text: str, max_characters: int) -> str:
    """``text`` without HTML entities, control characters and runs of spaces, in Unicode form NFKC, cut to length.

    Entities go first, because one may stand for a control character or a line break. Line breaks and tabs become
    spaces; all other characters of the categories C* (control, format, private, unassigned) vanish.
    """
    text = unicodedata.normalize("NFKC", html.unescape(text))
    text = "".join(one for one in " ".join(text.split()) if not unicodedata.category(one).startswith("C"))
    return " ".join(text.split())[:max_characters].rstrip()


def film_title(title: str) -> str:
    """A film of MovieLens as people name it: ``Matrix, The (1999)`` becomes ``The Matrix (1999)``.

    Names in brackets are turned round likewise; the publisher's mark ``(V)`` for a video goes.
    """
    dated = _DATED.fullmatch(title.strip())
    name, year = dated.groups() if dated else (title.strip(), None)
    name = _TRAILING_ARTICLE.sub(_article_first, name)
    return f"{name} ({year})" if year else name


def _article_first(found: re.Match[str]) -> str:
    rest, article = found.groups()
    return f"{article}{rest}" if article.endswith("'") else f"{article} {rest}"
