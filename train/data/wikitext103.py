"""WikiText-103 as a TFDS dataset, made from the official files without TensorFlow.

`tfds.load` and `as_dataset` always need TensorFlow. Without it:

    builder = WikiText103(data_dir=folder, config="tokens", file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=files))
    articles = builder.as_data_source(split="train")  # random access to {"title", "text"}

Once this module is imported, `tfds.data_source("wiki_text103/tokens", split="train",
data_dir=folder, builder_kwargs={"file_format": "array_record"})` finds it by name.
"""

import contextlib
import hashlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from train.data import wikitext
from train.data.cache import Note, cached, fingerprint


class WikiText103(tfds.core.GeneratorBasedBuilder):
    """Articles of WikiText-103, in order; those of a split, joined, are the official file."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012  (TFDS asks for a list)
        tfds.core.BuilderConfig(name="tokens", description="Rare words replaced by <unk>."),
        tfds.core.BuilderConfig(name="raw", description="With rare words."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens (config raw: wiki.*.raw) "
        "or the archive wikitext-103-v1.zip (raw: wikitext-103-raw-v1.zip) into manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        """Features: title and text, both UTF-8."""
        return tfds.core.DatasetInfo(
            builder=self,
            description="Good and featured articles of the English Wikipedia: 103 million words.",
            features=tfds.features.FeaturesDict(
                {"title": tfds.features.Text(), "text": tfds.features.Text()}
            ),
            homepage="https://arxiv.org/abs/1609.07843",
            license="CC BY-SA 3.0",
            disable_shuffling=True,  # evaluation reads the articles in order
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        """The splits whose files exist."""
        form = self.builder_config.name  # pyright: ignore[reportOptionalMemberAccess]
        files = wikitext.sources(Path(dl_manager.manual_dir), form)
        return {split: self._generate_examples(file, form, split) for split, file in files.items()}

    def _generate_examples(self, file: Path, form: str, split: str) -> Iterator[Any]:
        """Numbered articles of a split."""
        for index, (title, text) in enumerate(wikitext.articles(wikitext.read(file, form, split))):
            yield index, {"title": title, "text": text}


def prepare(folder: Path, cache: Path, *, note: Note) -> Path:
    """Makes the dataset from a folder of official files, unless the cache has it.

    Args:
        folder: with `wiki.*.tokens`, `wiki.*.raw`, or an archive of either.
        cache: where the dataset is kept.
        note: gets a line if the dataset has to be made.

    Returns:
        TFDS's data_dir, to find the dataset `wiki_text103` in.

    Raises:
        BadInput: the folder has neither files nor archive.
    """
    form = wikitext.which(folder)
    digests = {}
    for file in sorted({*wikitext.sources(folder, form).values()}):
        with file.open("rb") as opened:
            digests[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()

    def make(target: Path) -> None:
        note(f"preparing WikiText-103 from {folder}")
        tfds.disable_progress_bar()
        builder = WikiText103(data_dir=str(target), config=form, file_format="array_record")
        manual = tfds.download.DownloadConfig(manual_dir=str(folder.absolute()))
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints what it does
            builder.download_and_prepare(download_config=manual)
        shutil.rmtree(target / "downloads", ignore_errors=True)  # empty

    name = f"wikitext103-{fingerprint(form, str(WikiText103.VERSION), digests)}"
    return cached(cache, name, make, note=note)
