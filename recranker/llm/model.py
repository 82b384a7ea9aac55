"""A causal language model with its tokenizer, chat frame and, where tuned, its adapter."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
)
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from recranker.errors import ModelError, first_line
from recranker.llm import attention, smollm2
from recranker.llm.chat import ChatFrame, chat_frame, check_inert
from recranker.llm.limits import missing_library
from recranker.llm.settings import LLMSettings, LoraSettings, Quantization

logger = logging.getLogger(__name__)

HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


@dataclass
class LanguageModel:
    """What scoring and tuning need of a model."""

    model: Any
    """A transformers causal LM, or the ``PeftModel`` round it."""
    tokenizer: Any
    frame: ChatFrame
    device: torch.device
    dtype: torch.dtype
    merged: bool = False
    """Whether an adapter has become part of the weights."""
    quantization: Quantization = "none"
    """Of the linear layers; ``dtype`` is then the format of their products."""


def resolve_model(name: str, cache: Path) -> Path:
    """The local folder of model ``name``: safetensors, configuration and tokenizer.

    Args:
        name: 'smollm2-135m-instruct' (fetched and converted once), a local folder, or a hub id.
        cache: Folder for downloads and converted models.

    Raises:
        ModelError: If there is no such model, or it has no safetensors.
        FetchError: If a download fails or is not what its checksum promises.
    """
    if name == smollm2.NAME:
        return smollm2.resolve(cache)
    local = Path(name).expanduser()
    if local.is_dir():
        return _with_weights(local)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelError(f"llm.model: no folder {name!r}; give a model's folder, a hub id or {smollm2.NAME!r}")
    return _with_weights(_from_hub(name, cache))


def _from_hub(name: str, cache: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, cache_dir=cache / "hub", allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"llm.model: {name!r} is no local folder and cannot be fetched: {first_line(error)}") from None


def _with_weights(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json, so this is no model's folder")
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: no *.safetensors; other weight formats can run code and are not read")
    return folder


def load_model(path: Path, settings: LLMSettings, quantization: Quantization = "none") -> LanguageModel:
    """The model in ``path`` in evaluation mode, on the device and in the format ``settings`` ask for.

    Args:
        path: Folder with safetensors, configuration and tokenizer.
        settings: How it is run.
        quantization: 'nf4' keeps the linear layers but the output head in 4 bits, on CUDA only.

    Raises:
        ModelError: If files are missing or broken, the device is not there or cannot do 4 bits, or the tokenizer is
            unfit.
    """
    torch.set_num_threads(settings.threads)
    device = _device(settings)
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # it would plan anew for every length of row, for tens of ms
    dtype = _dtype(settings, device)
    bits = _bits(quantization, settings, device, dtype)
    _with_weights(path)
    transformers_logging.disable_progress_bar()  # a job shows its own
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention.NAME,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            quantization_config=bits,
            device_map=_placed(device),
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{path}: not loadable as a causal language model: {first_line(error)}") from None
    longest = getattr(model.config, "max_position_embeddings", settings.max_prompt_tokens)
    if settings.max_prompt_tokens > longest:
        raise ModelError(f"llm.max_prompt_tokens is {settings.max_prompt_tokens}, the model in {path} reads {longest}")
    check_inert(tokenizer, where=str(path))
    frame = chat_frame(tokenizer, where=str(path))
    return LanguageModel(model.to(device).eval(), tokenizer, frame, device, dtype, quantization=quantization)


def _device(settings: LLMSettings) -> torch.device:
    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise ModelError("llm.device is 'cuda', but this process sees no CUDA device; set llm.device=auto or cpu")
    return torch.device("cpu" if settings.device == "cpu" or not there else "cuda")


def _placed(device: torch.device) -> dict[str, torch.device] | None:
    """Where weights go as they are read; None: into the memory of the host.

    Read there first, the weights of a model for each GPU of a machine would have to fit into it together.
    """
    return {"": torch.device("cuda", torch.cuda.current_device())} if device.type == "cuda" else None


def _dtype(settings: LLMSettings, device: torch.device) -> torch.dtype:
    """bfloat16 is several times slower than float32 on CPUs without instructions for it."""
    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]


def _bits(
    quantization: Quantization, settings: LLMSettings, device: torch.device, dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """Normal floats of 4 bits whose scales are quantised too; None leaves the weights as they are.

    Source: QLoRA, Dettmers et al. 2023, arXiv 2305.14314.
    """
    if quantization == "none":
        return None
    if device.type != "cuda":
        raise ModelError(
            f"tune.quantization={quantization!r} needs a CUDA device, and with llm.device={settings.device!r} there is "
            "none; set tune.quantization='none' or run on a machine that has one"
        )
    if missing := missing_library(quantization):
        raise ModelError(missing)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def prepare_quantized(lm: LanguageModel) -> None:
    """Make a model of 4 bits fit for training, before it gets an adapter; any other is left as it is.

    Norms, embedding and output head become float32, where the gradient flows through them. Gradient checkpointing
    stays with whoever asks for it.

    Source: QLoRA, arXiv 2305.14314, as peft does it.
    """
    if lm.quantization != "none":
        lm.model = prepare_model_for_kbit_training(lm.model, use_gradient_checkpointing=False)


def add_adapter(lm: LanguageModel, settings: LoraSettings, *, seed: int = 0) -> None:
    """Put a fresh trainable LoRA adapter round ``lm.model``; everything else is frozen.

    Raises:
        ModelError: If there is an adapter already, or the model has none of the layers named.
    """
    if isinstance(lm.model, PeftModel):
        raise ModelError("the model has an adapter already; load the base model again before adding another")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.rank_stabilised,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        layers_to_transform=_last_layers(lm, settings.last_layers),
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lm.model = get_peft_model(lm.model, config)
    except ValueError as error:
        raise ModelError(f"tune.lora.targets do not fit this model: {first_line(error)}") from None


def _last_layers(lm: LanguageModel, count: int | None) -> list[int] | None:
    if count is None:
        return None
    total = lm.model.config.num_hidden_layers
    if count > total:
        raise ModelError(f"tune.lora.last_layers={count}, but this model has {total} layers")
    return list(range(total - count, total))


def load_adapter(lm: LanguageModel, path: Path, *, trainable: bool = False) -> None:
    """Put the adapter saved in ``path`` round ``lm.model``, in place of one that may be there.

    Raises:
        ModelError: If files are missing, tensors are missing, empty or of another shape, or the adapter before it was
            merged.
    """
    if lm.merged:
        raise ModelError(f"{path}: the weights hold another adapter already; load the base model again for this one")
    if not (path / ADAPTER_WEIGHTS).is_file() or not (path / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{path}: no adapter here; needed {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    remove_adapter(lm)
    try:
        tuned = PeftModel.from_pretrained(
            lm.model,
            str(path),
            is_trainable=trainable,
            local_files_only=True,
            torch_device="cpu",  # where the file is read: by itself every process would read on the first GPU
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
        raise ModelError(f"{path}: the adapter does not fit this model: {first_line(error)}") from None
    lm.model = tuned if trainable else tuned.eval()
    _check_complete(tuned, path)


def _check_complete(tuned: Any, path: Path) -> None:
    """peft only warns when tensors are missing, which is how an empty adapter of a sharded run goes unseen."""
    with safe_open(path / ADAPTER_WEIGHTS, framework="pt") as file:
        saved = set(file.keys())
    missing = set(get_peft_model_state_dict(tuned)) - saved
    if missing:
        raise ModelError(f"{path}: the adapter lacks {len(missing)} tensors, for instance {min(missing)!r}; tune again")


def release_memory() -> None:
    """Give back what models no longer held took of a GPU, which other processes may share."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def merge_adapter(lm: LanguageModel) -> None:
    """Add the adapter to the weights it adapts, for good, which saves products of its own in every layer.

    In float32 only: bfloat16 weights, or those of 4 bits, would round most of it away, so there it stays beside them.
    """
    if isinstance(lm.model, PeftModel) and lm.dtype == torch.float32 and lm.quantization == "none":
        lm.model = lm.model.merge_and_unload(progressbar=False).eval()
        lm.merged = True


def base_of(lm: LanguageModel) -> Any:
    """The transformers model, which may have an adapter's layers in it."""
    return lm.model.get_base_model() if isinstance(lm.model, PeftModel) else lm.model


def is_sharded(lm: LanguageModel) -> bool:
    """Whether each worker holds a part of every weight (ZeRO-3), which only calls of whole modules gather."""
    head = lm.model.get_output_embeddings()
    return hasattr(getattr(head, "weight", None), "ds_id")  # DeepSpeed's mark on every weight it shards


@contextmanager
def answering(lm: LanguageModel) -> Iterator[None]:
    """Within this block the model is in evaluation mode and nothing is kept for gradients; training goes on behind it.

    Where weights are sharded not by inference mode: those gathered in it may stay, and cannot be trained with later.
    """
    was_training = lm.model.training
    lm.model.eval()
    try:
        with torch.no_grad() if is_sharded(lm) else torch.inference_mode():
            yield
    finally:
        if was_training:
            lm.model.train()


def remove_adapter(lm: LanguageModel) -> None:
    """Take the adapter off, if there is one; the base weights are left as they were."""
    if isinstance(lm.model, PeftModel):
        lm.model = lm.model.unload()
