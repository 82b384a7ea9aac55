"""The shape of a language model: how many parameters it has and where, without its weights.

Source: Touvron et al. 2023, arXiv 2302.13971, for the layers (gated feed-forward, root mean square norms, no biases);
Ainslie et al. 2023, arXiv 2305.13245, for fewer key-value heads; the numbers are those of the models' ``config.json``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recranker.errors import ModelError
from recranker.llm.settings import LoraSettings


@dataclass(frozen=True)
class ModelShape:
    """A decoder of LLaMA's kind."""

    vocabulary: int
    """Tokens."""
    width: int
    """Of the residual stream."""
    feed_forward: int
    """Width of the gated layer."""
    layers: int
    heads: int
    """Of queries."""
    key_value_heads: int
    head_width: int
    tied: bool = False
    """Whether the output head is the embedding."""
    query_bias: bool = False
    """Whether queries, keys and values have biases (Qwen2)."""
    head_norms: bool = False
    """Whether queries and keys are normed per head (Qwen3)."""

    @property
    def queries(self) -> int:
        """Width of all heads' queries together."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all keys together; values are as wide."""
        return self.key_value_heads * self.head_width

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of one decoder layer."""
        return {
            "q_proj": (self.width, self.queries),
            "k_proj": (self.width, self.keys),
            "v_proj": (self.width, self.keys),
            "o_proj": (self.queries, self.width),
            "gate_proj": (self.width, self.feed_forward),
            "up_proj": (self.width, self.feed_forward),
            "down_proj": (self.feed_forward, self.width),
        }

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices; 2 floating-point operations per token each."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def matrix_weights(self) -> int:
        """The same of all layers."""
        return self.layers * self.layer_weights

    @property
    def parameters(self) -> int:
        """Every parameter of the model, embedding and output head included."""
        biases = (self.queries + 2 * self.keys) * self.query_bias + 2 * self.head_width * self.head_norms
        layer = self.layer_weights + biases + 2 * self.width
        return self.layers * layer + self.vocabulary * self.width * (1 if self.tied else 2) + self.width

    def adapted_layers(self, lora: LoraSettings) -> int:
        """Layers that have an adapter.

        Raises:
            ModelError: If more are wanted than there are.
        """
        if lora.last_layers is not None and lora.last_layers > self.layers:
            raise ModelError(f"tune.lora.last_layers={lora.last_layers}, but this model has {self.layers} layers")
        return lora.last_layers or self.layers

    def adapter_parameters(self, lora: LoraSettings) -> int:
        """Trained parameters: rank * (inputs + outputs) per adapted linear layer.

        Raises:
            ModelError: If a target is no linear layer of a decoder layer.
        """
        unknown = [name for name in lora.targets if name not in self.linears]
        if unknown:
            raise ModelError(f"tune.lora.targets: the plan knows {list(self.linears)}, got {unknown}")
        adapted = {name: sum(self.linears[name]) for name in lora.targets}
        return self.adapted_layers(lora) * lora.rank * sum(adapted.values())


NAMED: dict[str, ModelShape] = {
    "llama-2-7b": ModelShape(32_000, 4096, 11_008, 32, 32, 32, 128),
    "llama-3-8b": ModelShape(128_256, 4096, 14_336, 32, 32, 8, 128),
    "mistral-7b": ModelShape(32_768, 4096, 14_336, 32, 32, 8, 128),  # v0.3; before, the vocabulary was 32,000
    "qwen2.5-7b": ModelShape(152_064, 3584, 18_944, 28, 28, 4, 128, query_bias=True),
    "smollm2-135m": ModelShape(49_152, 576, 1536, 30, 9, 3, 64, tied=True),
    "smollm2-1.7b": ModelShape(49_152, 2048, 8192, 24, 32, 32, 64, tied=True),
}
"""Models whose shape is known without any file."""

SHAPE_OF_MODEL = {
    "smollm2-135m-instruct": "smollm2-135m",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": "smollm2-1.7b",
    "meta-llama/Llama-2-7b-chat-hf": "llama-2-7b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama-3-8b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3-8b",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
}
"""Which of them a value of ``llm.model`` means."""

KINDS = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` of models with these layers."""


def shape_of(name: str, *, hub: Path | None = None) -> ModelShape:
    """The shape called ``name``, that of a model's folder or ``config.json``, or of a model fetched before.

    Args:
        name: Of a shape, a file or folder, or what ``llm.model`` may be.
        hub: Where models fetched from the hub are kept.

    Raises:
        ModelError: If there is no such name or file, or the model is of another kind.
    """
    known = NAMED.get(SHAPE_OF_MODEL.get(name, name))
    if known is not None:
        return known
    path = Path(name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file() and hub is not None and (fetched := _fetched(name, hub)) is not None:
        path = fetched
    if not path.is_file():
        raise ModelError(f"no shape is known of {name!r}; known: {', '.join(NAMED)}, or the path of a config.json")
    return read_shape(path)


def _fetched(name: str, hub: Path) -> Path | None:
    """The ``config.json`` of a hub model that is on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", cache_dir=hub)
    except HFValidationError:  # a path rather than an id
        return None
    return Path(found) if isinstance(found, str) else None


def read_shape(path: Path) -> ModelShape:
    """The shape that a ``config.json`` describes.

    Raises:
        ModelError: If it cannot be read, or the model is of another kind.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return _shape(values, where=str(path))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: not readable as a model's config.json: {error}") from None


def _shape(values: Mapping[str, Any], *, where: str) -> ModelShape:
    kind = values.get("model_type")
    if kind not in KINDS:
        raise ModelError(f"{where}: the plan knows models of type {', '.join(KINDS)}, got {kind!r}")
    needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vocabulary, width, feed_forward, layers, heads = _whole(values, needed, where)
    return ModelShape(
        *(vocabulary, width, feed_forward, layers, heads),
        key_value_heads=values.get("num_key_value_heads") or heads,
        head_width=values.get("head_dim") or width // heads,
        tied=bool(values.get("tie_word_embeddings", False)),
        query_bias=kind == "qwen2",
        head_norms=kind == "qwen3",
    )


def _whole(values: Mapping[str, Any], names: Sequence[str], where: str) -> list[int]:
    wrong = [name for name in names if not isinstance(values.get(name), int) or values[name] < 1]
    if wrong:
        raise ModelError(f"{where}: {', '.join(wrong)} must be whole numbers above 0")
    return [values[name] for name in names]
