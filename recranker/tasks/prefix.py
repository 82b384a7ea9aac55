"""The part of a prompt that all questions about a user share: instructions and history.

The history comes last and its liked titles run from the most recent to the oldest, so that a
prefix that must be cut loses the oldest likes first.
"""

from collections.abc import Sequence

from recranker.tasks.wording import Templates, default_templates


def build_prefix(liked: Sequence[str], disliked: Sequence[str], templates: Templates | None = None) -> str:
    """Instructions and history.

    Args:
        liked: Titles, the most recent first; may be empty.
        disliked: Likewise.
        templates: Texts in place of this version's own.
    """
    texts = (templates or default_templates()).prefix
    lines = [texts.instructions]
    if disliked:
        lines += [texts.disliked, *disliked]
    lines += [texts.liked, *liked] if liked else [texts.nothing_liked]
    return "\n".join(lines)
