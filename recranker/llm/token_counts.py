"""How many tokens prompts have, counted where they are made; no torch, no model weights."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from recranker.errors import ModelError, first_line
from recranker.llm.chat import chat_frame, check_inert
from recranker.schema import PROMPTS, QUESTION


@dataclass(frozen=True)
class TokenCounter:
    """Counts as ``llm.encoding`` encodes; small enough to be sent to workers, where it is unpacked on first use."""

    definition: str
    """The tokenizer as the tokenizers library writes it."""
    head_tokens: int
    """Of the chat frame before a prefix."""
    tail_tokens: int
    """Of the chat frame after a question."""

    def count(self, prompts: pa.Table) -> pa.Table:
        """``prompts``, PROMPTS rows with or without further columns, with all their tokens counted."""
        questions = prompts["questions"].combine_chunks()
        asked = questions.flatten()
        tokens = {
            "prefix_tokens": self.tokens_of(prompts["prefix"].to_pylist()) + self.head_tokens,
            "tokens": self.tokens_of(asked.field("text").to_pylist()) + self.tail_tokens,
        }
        fields = [
            asked.field(field.name) if field.name != "tokens" else pa.array(tokens["tokens"], field.type)
            for field in QUESTION
        ]
        structs = pa.StructArray.from_arrays(fields, fields=list(QUESTION))
        counted = pa.ListArray.from_arrays(questions.offsets, structs)
        for name, column in (("questions", counted), ("prefix_tokens", pa.array(tokens["prefix_tokens"], pa.int32()))):
            place = prompts.schema.get_field_index(name)
            prompts = prompts.set_column(place, PROMPTS.schema.field(name), column)
        return prompts

    def tokens_of(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """``(texts,)`` tokens of each, without any frame; special tokens in a text are ordinary characters."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.fromiter(map(len, found), dtype=np.int32, count=len(texts))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process per core already
        tokenizer = Tokenizer.from_str(self.definition)
        tokenizer.encode_special_tokens = True
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer


def token_counter(folder: Path) -> TokenCounter:
    """The counter of the model in ``folder``.

    Raises:
        ModelError: If its tokenizer is missing, broken, or turns text into special tokens.
    """
    from transformers import AutoTokenizer  # brings torch along, which workers that only count never need

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{folder}: no loadable tokenizer: {first_line(error)}") from None
    check_inert(tokenizer, where=str(folder))
    frame = chat_frame(tokenizer, where=str(folder))
    return TokenCounter(tokenizer.backend_tokenizer.to_str(), len(frame.head_ids), len(frame.tail_ids))
