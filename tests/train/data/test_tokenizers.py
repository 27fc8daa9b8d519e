"""Tokenizers: what goes in comes out, and the same text gives the same tokenizer."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.data import tokenizer_cases
from train.data import tokenizers
from train.data.tokenizers import Bytes, Subwords, load_tokenizer, train_bpe
from train.errors import BadInput

TEXT = "".join(f"the square of {i} is {i * i}, is it not so, naïve one?\n" for i in range(400))


@pytest.fixture(scope="module")
def bpe() -> Subwords:
    """A vocabulary of 320 tokens."""
    return train_bpe([TEXT], vocab_size=320)


@given(text=st.text(max_size=80))
@settings(max_examples=60)
def test_any_text_comes_back(bpe: Subwords, text: str):
    for tokenizer in (Bytes(), bpe):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        assert all(0 <= token < tokenizer.vocab_size for token in tokens)
        assert tokenizer.end_of_text not in tokens


def test_equal_texts_give_equal_tokenizers_and_other_texts_others(bpe: Subwords):
    again = train_bpe([TEXT], vocab_size=320)
    assert again.json() == bpe.json()
    assert again.fingerprint == bpe.fingerprint
    assert bpe.vocab_size == 320
    assert train_bpe([TEXT], vocab_size=300).fingerprint != bpe.fingerprint
    assert train_bpe([TEXT.upper()], vocab_size=320).fingerprint != bpe.fingerprint


def test_learned_tokens_are_longer_than_bytes(bpe: Subwords):
    assert len(bpe.encode(TEXT)) < 0.45 * len(TEXT.encode())


def test_text_that_spells_a_special_token_is_text(bpe: Subwords):
    spelled = "one<|endoftext|>two"
    assert bpe.end_of_text == 0
    assert 0 not in bpe.encode(spelled)
    assert bpe.decode(bpe.encode(spelled)) == spelled
    assert bpe.decode([0]) == "<|endoftext|>"


def test_a_saved_tokenizer_is_the_same(bpe: Subwords, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(bpe.json(), encoding="utf-8")
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(path)
        assert loaded.fingerprint == bpe.fingerprint
        assert loaded.encode(TEXT) == bpe.encode(TEXT)


def test_a_foreign_tokenizer_is_used_without_what_it_adds(bpe: Subwords, tmp_path: Path):
    content = json.loads(bpe.json())
    special = next(t for t in content["added_tokens"] if t["content"] == "<|endoftext|>")
    content["added_tokens"].append({**special, "id": 400, "content": "</s>"})
    content["truncation"] = {
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [400], "tokens": ["</s>"]}},
    }  # fmt: skip
    file = tmp_path / "other.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    loaded = load_tokenizer(file)
    assert loaded.encode("the square of the square") == bpe.encode("the square of the square")
    assert loaded.encode("</s>") == bpe.encode("</s>")
    assert loaded.vocab_size == bpe.vocab_size + 1  # the library numbers added tokens itself


def test_a_file_that_is_not_a_tokenizer_is_refused(bpe: Subwords, tmp_path: Path):
    with pytest.raises(BadInput, match=r"neither 'bytes' nor 'bpe' nor a tokenizer.json"):
        load_tokenizer(tmp_path / "bqe")
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(BadInput, match=r"is not a tokenizer.json of Hugging Face"):
        load_tokenizer(file)
    file.write_text(bpe.json().replace("<|endoftext|>", "<other>"), encoding="utf-8")
    with pytest.raises(BadInput, match="no token to put between documents"):
        load_tokenizer(file)
    with pytest.raises(BadInput, match=r"model.vocab_size=256 is too small for --data.tokenizer"):
        train_bpe([TEXT], vocab_size=256)


def test_deepseeks_token_between_documents_is_known(bpe: Subwords, tmp_path: Path):
    name = "<\uff5cend▁of▁sentence\uff5c>"
    file = tmp_path / "tokenizer.json"
    file.write_text(bpe.json().replace("<|endoftext|>", name), encoding="utf-8")
    loaded = load_tokenizer(file)
    assert loaded.decode([loaded.end_of_text]) == name


def test_a_missing_unknown_token_is_one_line():
    with pytest.raises(BadInput, match=r"words cannot encode the text: .*Missing \[UNK\]") as error:
        Subwords(tokenizer_cases.words(), name="words").encode("the triangle")
    assert "\n" not in str(error.value)


def test_of_a_long_text_the_beginning_is_learned_from(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizers, "_LEARNED_FROM", 1000)
    documents = [TEXT[i : i + 100] for i in range(0, 5000, 100)]
    assert (
        train_bpe(documents, vocab_size=300).json()
        == train_bpe(documents[:10], vocab_size=300).json()
    )
    assert (
        train_bpe(documents[:9], vocab_size=300).json()
        != train_bpe(documents[:10], vocab_size=300).json()
    )
