"""The part of a prompt that all questions about a user share: instructions and history.

The history comes last and its liked titles run from the most recent to the oldest, so that a
prefix that must be cut loses the oldest likes first.
"""

from collections.abc import Sequence

INSTRUCTIONS = (
    "Below is what one person liked and disliked, the most recent first. Judge what this person will enjoy next.\n"
    "'Like X?' and 'Prefer X to Y?' are answered by Yes or No, 'Rate X' by a number, 'Best of' by a letter. "
    "What other recommenders say stands in brackets."
)
"""All that questions have in common is said here, once: a question is little more than a title and its signal."""


def build_prefix(liked: Sequence[str], disliked: Sequence[str]) -> str:
    """Instructions and history; both lists hold titles, the most recent first, and may be empty."""
    lines = [INSTRUCTIONS]
    if disliked:
        lines += ["Disliked:", *disliked]
    lines += ["Liked:", *liked] if liked else ["Liked: nothing known yet"]
    return "\n".join(lines)
