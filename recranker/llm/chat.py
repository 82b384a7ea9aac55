"""The chat frame of a model, and text that can never leave it.

Shared by tuning and scoring: whatever a title says, it is read as plain text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recranker.errors import ModelError

SENTINEL = "@@content@@"


@dataclass(frozen=True)
class ChatFrame:
    """The special tokens round the content of one user turn."""

    head_ids: tuple[int, ...]
    """Up to the content: system turn and the opening of the user's turn."""
    tail_ids: tuple[int, ...]
    """From the content to where the model's answer begins."""


def chat_frame(tokenizer: Any, *, where: str) -> ChatFrame:
    """The frame of ``tokenizer``'s own chat template.

    Raises:
        ModelError: If there is no template, or it does not show the content exactly once.
    """
    if not tokenizer.chat_template:
        raise ModelError(f"{where}: the tokenizer has no chat template; take an instruction-tuned model")
    turns = [{"role": "user", "content": SENTINEL}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    parts = text.split(SENTINEL)
    if len(parts) != 2:
        raise ModelError(f"{where}: the chat template shows the content {len(parts) - 1} times, needed once")
    head, tail = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts)
    return ChatFrame(tuple(head), tuple(tail))


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, special tokens spelled out as ordinary characters; one call for all texts."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def check_inert(tokenizer: Any, *, where: str) -> None:
    """Make sure that no spelling of a special token in a text becomes that token.

    Raises:
        ModelError: If it does, as with tokenizers that ignore ``split_special_tokens``.
    """
    special = set(tokenizer.all_special_ids)
    spellings = [str(token) for token in tokenizer.all_special_tokens]
    for spelling, ids in zip(spellings, plain_ids(tokenizer, spellings), strict=True):
        if special & set(ids):
            raise ModelError(
                f"{where}: the tokenizer turns the text {spelling!r} into a special token, so a title could end the "
                "turn; take a model with a fast tokenizer"
            )
