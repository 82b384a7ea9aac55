import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

from recranker.errors import ModelError
from recranker.llm import smollm2
from recranker.llm.chat import plain_ids
from recranker.llm.encoding import encode
from recranker.llm.model import load_model, resolve_model
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings
from recranker.tasks.protocol import Prompt, Question


def fake_convert(gguf: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights of " + gguf.name.encode())


@pytest.fixture
def _converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "convert", fake_convert)


def test_digits_stand_alone_and_special_tokens_are_known() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|im_end|>", *alphabet, "12", "Ċ1", "ĊĊ", "al"]
    tokenizer = smollm2.build_tokenizer(tokens, ["1 2", "Ċ 1", "Ċ Ċ", "a l"], ["<|im_end|>"])
    assert tokenizer.encode("\n\n1. al 12.").tokens == ["ĊĊ", "1", ".", "Ġ", "al", "Ġ", "1", "2", "."]
    assert tokenizer.encode("al<|im_end|>").ids == [tokens.index("al"), 0]


@pytest.mark.usefixtures("_converted")
def test_a_conversion_is_published_whole(tmp_path: Path) -> None:
    folder = smollm2.publish(tmp_path / "a.gguf", tmp_path / "cache" / "model")
    assert smollm2.is_whole(folder)
    assert sorted(json.loads((folder / smollm2.RECORD).read_text())) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.usefixtures("_converted")
def test_a_torn_conversion_is_made_again(tmp_path: Path) -> None:
    folder = smollm2.publish(tmp_path / "a.gguf", tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"weigh")
    assert not smollm2.is_whole(folder)
    smollm2.publish(tmp_path / "a.gguf", folder)
    assert smollm2.is_whole(folder)


@pytest.mark.usefixtures("_converted")
def test_the_first_of_two_processes_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"

    def overtaken(gguf: Path, made: Path) -> None:
        monkeypatch.setattr(smollm2, "convert", fake_convert)
        smollm2.publish(gguf, folder)
        fake_convert(gguf, made)

    monkeypatch.setattr(smollm2, "convert", overtaken)
    assert smollm2.publish(tmp_path / "a.gguf", folder) == folder
    assert smollm2.is_whole(folder)


def test_a_conversion_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(gguf: Path, folder: Path) -> None:
        fake_convert(gguf, folder)
        raise OSError("no space left")

    monkeypatch.setattr(smollm2, "convert", failing)
    with pytest.raises(ModelError, match=r"no space left; set store\.home elsewhere"):
        smollm2.publish(tmp_path / "a.gguf", tmp_path / "cache" / "model")
    assert list((tmp_path / "cache").iterdir()) == []


def test_nothing_there_is_not_whole(tmp_path: Path) -> None:
    assert not smollm2.is_whole(tmp_path / "model")
    (tmp_path / smollm2.RECORD).write_text('{"model.safetensors": "abc"')
    assert not smollm2.is_whole(tmp_path)


@pytest.fixture(scope="module")
def real_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolve_model(smollm2.NAME, tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
def test_real_tokenizer_splits_numbered_lists_as_the_model_was_trained(real_path: Path) -> None:
    lm = load_model(real_path, LLMSettings(model=smollm2.NAME, device="cpu"))
    numbered, blank = plain_ids(lm.tokenizer, ["1. 2. 10.", "\n\n1. A"])
    assert lm.tokenizer.convert_ids_to_tokens(numbered) == ["1", ".", "Ġ", "2", ".", "Ġ", "1", "0", "."]
    assert numbered == [33, 30, 216, 34, 30, 216, 33, 32, 30]
    assert lm.tokenizer.convert_ids_to_tokens(blank) == ["ĊĊ", "1", ".", "ĠA"]
    rebuilt = smollm2.read_tokenizer(real_path.parents[1] / "downloads" / smollm2.MEMBER)
    assert rebuilt.get_vocab() == lm.tokenizer.get_vocab()  # nothing lost in saving


@pytest.mark.slow
def test_real_model_knows_the_capital_of_france(real_path: Path) -> None:
    lm = load_model(real_path, LLMSettings(model=smollm2.NAME, device="cpu"))
    ids = torch.tensor(plain_ids(lm.tokenizer, ["The capital of France is"]))
    with torch.inference_mode():
        assert lm.tokenizer.decode(int(lm.model(input_ids=ids).logits[0, -1].argmax())) == " Paris"


@pytest.mark.slow
def test_real_backends_agree(real_path: Path) -> None:
    settings = LLMSettings(model=smollm2.NAME, device="cpu")
    lm = load_model(real_path, settings)
    texts = ("\n\nWould this person like Heat (1995)? Yes or No?", "\n\nA. Ran\nB. Jaws\nLetter?")
    questions = tuple(
        Question("pointwise", text, labels, ("1",))
        for text, labels in zip(texts, (("Yes", "No"), ("A", "B")), strict=True)
    )
    prompts = [Prompt("p", "Liked:\nAlien (1979)\nBrazil (1985)\n<|im_end|>", questions)]
    assert encode(prompts[0], lm, 512).prefix_ids.count(2) == 1  # the end of the system turn, not the title's
    found = [
        np.concatenate(make_scorer(lm, settings.model_copy(update={"backend": name})).score(prompts)[0])
        for name in ("plain", "packed", "kv")
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-3)
    np.testing.assert_allclose(found[2], found[0], atol=1e-3)


@pytest.mark.slow
def test_real_weights_are_written_once(real_path: Path) -> None:
    weights = load_file(real_path / "model.safetensors")
    assert len(weights) == 272  # as many tensors as the GGUF file has: the head is the embedding, stored once
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_real_model_obeys_the_mask_in_every_number_format(real_path: Path, dtype: str) -> None:
    settings = LLMSettings(model=smollm2.NAME, device="cpu", dtype=dtype)  # type: ignore[arg-type]
    assert make_scorer(load_model(real_path, settings), settings)
