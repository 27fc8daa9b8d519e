"""The tokenizer that is exported is the one of training, in transformers too."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from tests.train.data.test_parts import FRAGMENTS
from tests.train.data.tokenizer_cases import KINDS, TEXT, gpt2, subwords
from train.data.subwords import Subwords
from train.data.text import embedded_text
from train.data.tokenizer_files import tokenizer_files
from train.data.tokenizers import load_tokenizer

TEXTS = [
    *TEXT[:2000].splitlines(keepends=True),
    "".join(FRAGMENTS),
    " ".join(FRAGMENTS),
    "<s>a</s>",
]


def adding() -> Subwords:
    """A tokenizer that adds a special token before and after a text."""
    backend = gpt2()
    end = ("<|endoftext|>", 0)
    template = processors.TemplateProcessing(
        single=f"{end[0]} $A {end[0]}", pair=f"$A {end[0]} $B", special_tokens=[end]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return Subwords(backend, name="adding")


def cases() -> dict[str, Subwords]:
    """Every kind of tokenizer."""
    return {kind: subwords(kind) for kind in KINDS} | {"adding": adding()}


def test_the_written_files_fix_what_transformers_would_choose():
    for kind, tokenizer in cases().items():
        settings = json.loads(tokenizer_files(tokenizer)["tokenizer_config.json"])
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert tokenizer._backend.token_to_id(settings["eos_token"]) == tokenizer.end_of_text
        assert settings["split_special_tokens"]
        prefix = {"gpt2": False, "roberta": True, "adding": False}
        assert settings.get("add_prefix_space") == prefix.get(kind)


def test_the_written_tokenizer_adds_nothing_and_encodes_alike():
    for kind, tokenizer in cases().items():
        content = tokenizer_files(tokenizer)["tokenizer.json"]
        written = Tokenizer.from_str(content)
        written.encode_special_tokens = True
        for text in TEXTS:
            assert written.encode(text).ids == tokenizer.encode(text), (kind, text)
    assert json.loads(tokenizer_files(adding())["tokenizer.json"])["post_processor"] == {
        "type": "Sequence",
        "processors": [json.loads(processors.ByteLevel().__getstate__())],
    }


def check(tokenizer: Subwords, folder: Path, texts: list[str]) -> None:
    """Compares ids with those that transformers reads a folder to."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    for name, content in tokenizer_files(tokenizer).items():
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in texts:
        assert theirs(text)["input_ids"] == tokenizer.encode(text), text
    assert theirs.eos_token_id == tokenizer.end_of_text


@pytest.mark.parity
@pytest.mark.parametrize("kind", [*KINDS, "adding"])
def test_transformers_makes_the_same_tokens(kind: str, tmp_path: Path):
    check(cases()[kind], tmp_path / "model", TEXTS)


@pytest.mark.parity
def test_transformers_makes_the_same_tokens_of_published_ones(tmp_path: Path, shared: Path):
    lines = embedded_text().decode().splitlines(keepends=True)[::20]
    wiki = (shared / "data" / "wikitext-103" / "wiki.valid.tokens").read_text(encoding="utf-8")
    lines += wiki.splitlines(keepends=True)
    for file in sorted((shared / "cases" / "tokenizers").glob("*.json")):
        if not re.search("no_unk", file.stem):
            check(load_tokenizer(file), tmp_path / file.stem, lines)
