"""The whole way from a configuration's text to windows: what is kept, and what is refused."""

import dataclasses
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.train.data import tokenizer_cases
from train.data.language import LanguageData, load
from train.data.prepared import Texts, open_dataset
from train.data.text import TextData
from train.errors import BadInput
from train.integrity import INTEGRITY
from train.tasks.text_metrics import text_metrics


class Sentences(tfds.core.GeneratorBasedBuilder):
    """A dataset such as lm1b, of twenty sentences."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self) -> tfds.core.DatasetInfo:
        text, number = tfds.features.Text(), tfds.features.Scalar(np.int64)
        features = tfds.features.FeaturesDict({"text": text, "number": number})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for i in range(20):
            yield i, {"text": f"sentence number {i} of twenty", "number": i}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TFDS's data_dir with the dataset in it."""
    folder = tmp_path_factory.mktemp("tfds")
    Sentences(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two books."""
    folder = tmp_path / "books"
    folder.mkdir()
    for name in ("a", "b"):
        lines = (f"{name}: the square of {i} is {i * i}\n" for i in range(300))
        (folder / f"{name}.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A file to validate on."""
    file = tmp_path / "wiki.valid.tokens"
    file.write_text(" \n = One = \n \n the square \n" * 40)
    return file


@pytest.fixture
def books(folder: Path, official: Path, tmp_path: Path) -> TextData:
    """The configuration of both."""
    return TextData(
        path=folder,
        validation=official,
        tokenizer="bpe",
        sequence_length=16,
        cache=tmp_path / "cache",
    )


def quiet(data: TextData, **fields: Any) -> LanguageData:
    """The data of a configuration, made or not."""
    return load(dataclasses.replace(data, **fields), vocab_size=300, note=lambda _: None)


def test_text_is_made_into_tokens_once(books: TextData, folder: Path):
    first = quiet(books)
    again = load(books, vocab_size=300, note=pytest.fail)
    assert again.identity == first.identity
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    np.testing.assert_array_equal(again.training[3], first.training[3])
    books_text = "".join((folder / f"{n}.txt").read_text() for n in "ab")
    tokens = first.training.data[0 : first.training.data.size]
    assert first.tokenizer.decode(tokens).replace("<|endoftext|>", "") == books_text
    assert first.counts.documents == 40  # articles
    assert first.counts.words == 40 * (5 + 4)
    assert first.counts.tokens == first.held_out.data.size


@pytest.mark.parametrize("changed", ["training", "held_out", "tokenizer"])
def test_whatever_changes_the_tokens_is_seen(
    changed: str, books: TextData, folder: Path, official: Path
):
    before = quiet(books).identity
    if changed == "training":
        (folder / "b.txt").write_text((folder / "b.txt").read_text() + "and so on\n")
        after = quiet(books).identity
    elif changed == "held_out":
        official.write_text(official.read_text() + " more \n")
        after = quiet(books).identity
    else:
        after = load(books, vocab_size=290, note=lambda _: None).identity
    assert changed in {name for name in after if after[name] != before[name]}


def test_the_vocabulary_is_learned_from_the_training_text_alone(books: TextData, official: Path):
    before = quiet(books).tokenizer
    official.write_text("zyx zyx zyx zyx " * 500)
    assert quiet(books).tokenizer.fingerprint == before.fingerprint
    cut = quiet(books, validation=None)
    whole = cut.training.data.size + cut.held_out.data.size
    assert cut.held_out.data.size == pytest.approx(0.05 * whole, rel=0.1)
    assert cut.tokenizer.fingerprint != before.fingerprint


def test_a_damaged_cache_is_named_and_made_again(books: TextData):
    before = quiet(books)
    rows = [before.training[i].tolist() for i in range(len(before.training))]
    for folder in [path for path in books.cache.iterdir() if path.is_dir()]:
        file = next(path for path in folder.iterdir() if path.name != INTEGRITY)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    notes: list[str] = []
    after = load(books, vocab_size=300, note=notes.append)
    assert sum("is damaged" in text for text in notes) == 3
    assert [after.training[i].tolist() for i in range(len(after.training))] == rows


def test_bytes_of_a_separate_validation_file(books: TextData, official: Path):
    data = quiet(books, tokenizer="bytes")
    assert not books.cache.exists()
    assert data.counts.tokens == data.counts.bytes == official.stat().st_size
    assert data.counts.words == 40 * (5 + 4)
    packed = quiet(books, tokenizer="bytes", packing=True)
    assert packed.training[0]["tokens"].dtype == np.uint8


def test_a_tokenizer_that_loses_text_is_said(books: TextData, folder: Path, tmp_path: Path):
    (folder / "a.txt").write_text("the square of é\n" * 300)
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer_cases.subwords("dropping").json(), encoding="utf-8")
    notes: list[str] = []
    data = dataclasses.replace(books, validation=folder / "a.txt", tokenizer=str(file))
    found = load(data, vocab_size=300, note=notes.append)
    # The letter, and the line end: white space comes back as spaces.
    assert found.counts.lost == pytest.approx(3 / 17, abs=1e-3)
    assert any(re.search(r"loses text: 17\.[67]% of the bytes of the held-out", n) for n in notes)


def test_a_blank_held_out_text_has_no_words(books: TextData, folder: Path):
    (folder / "b.txt").write_text("the square\n" * 200 + " " * 20_000)
    for tokenizer in ("bytes", "bpe"):
        found = quiet(
            books, validation=None, tokenizer=tokenizer, path=folder / "b.txt", sequence_length=2
        )
        assert found.counts.words == 0
        assert set(text_metrics(1.0, found.counts)) == {"loss", "perplexity", "bits_per_byte"}


def test_a_prepared_dataset_is_read(prepared: Path, tmp_path: Path):
    data = TextData(
        source="tfds",
        path=prepared,
        dataset="sentences",
        split="train[:50%]",
        validation_split="train[50%:]",
        tokenizer="bpe",
        sequence_length=8,
        packing=True,
        cache=tmp_path,
    )
    found = quiet(data)
    assert found.counts.documents == 10
    text = found.tokenizer.decode(found.held_out.data[0 : found.held_out.data.size])
    assert text.startswith("<|endoftext|>sentence number 10 of twenty<|endoftext|>")


@pytest.mark.slow
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    number=st.integers(0, 2),
    damage=st.sampled_from(["missing", "empty", "cut", "changed", "folder"]),
    place=st.floats(0, 1, exclude_max=True),
)
def test_a_damaged_dataset_is_named_or_read_as_before(
    prepared: Path, number: int, damage: str, place: float
):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tfds"
        shutil.copytree(prepared, folder)
        file = sorted(path for path in folder.rglob("*") if path.is_file())[number]
        content = bytearray(file.read_bytes())
        at = int(place * len(content))
        file.unlink()
        if damage == "folder":
            file.mkdir()
        elif damage != "missing":
            changed = content.copy()
            changed[at] ^= 0x5A
            contents = {"empty": b"", "cut": content[:at], "changed": changed}
            file.write_bytes(contents[damage])
        try:
            builder = open_dataset("sentences", folder)
            found = list(Texts(builder, "train", "text"))
        except BadInput as error:
            found = str(error)
        if isinstance(found, str):
            assert "sentences" in found
            assert "\n" not in found
        else:
            assert found == [f"sentence number {i} of twenty" for i in range(20)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "lm1b"}, r"holds no prepared dataset; prepare it once.*tfds\.builder\('lm1b'"),
        ({"dataset": "openwebtext"}, "TFDS has none called openwebtext: prepare one of your own"),
        ({"split": "tran"}, r"has no split 'tran', only train; choose with --data\.split"),
        ({"split": "train[:x]"}, r"TFDS split 'train\[:x\]': Error parsing split"),
        ({"text_feature": "txt"}, "has no text feature 'txt'; its features are number, text"),
        ({"text_feature": "number"}, "has no text feature 'number'"),
    ],
)
def test_a_dataset_that_is_not_there_is_refused(
    fields: dict[str, Any], message: str, prepared: Path, tmp_path: Path
):
    data = TextData(source="tfds", path=prepared, dataset="sentences", cache=tmp_path)
    with pytest.raises(BadInput, match=message):
        quiet(data, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": Path("nowhere")}, r"data\.path=nowhere does not exist"),
        ({"validation": Path("nowhere")}, r"data\.validation=nowhere does not exist"),
        ({"tokenizer": "nowhere.json"}, r"data\.tokenizer=nowhere\.json is neither"),
        ({"sequence_length": 10**6}, r"longer than the training part of the data: [\d,]+ tokens"),
        ({"source": "tfds"}, "name a dataset with --data.source tfds"),
        ({"dataset": "lm1b"}, "name a dataset with --data.source tfds"),
        ({"source": "wikitext103", "path": None}, "needs --data.path, the folder with"),
    ],
)
def test_what_does_not_fit_is_one_line(fields: dict[str, Any], message: str, books: TextData):
    with pytest.raises(BadInput, match=message):
        quiet(books, **fields)


def test_a_model_that_is_too_small_for_its_tokenizer_is_refused(books: TextData):
    quiet(books)
    learned = next(books.cache.glob("bpe-*/tokenizer.json"))
    with pytest.raises(BadInput, match=r"less than the 300 tokens.*use --model\.vocab-size 300"):
        load(dataclasses.replace(books, tokenizer=str(learned)), vocab_size=299)
