"""Texts of prepared TFDS datasets, with random access and without TensorFlow."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.data.cache import fingerprint
from train.errors import BadInput, one_line, require

INFO = "dataset_info.json"
_AT_ONCE = 256  # examples read by one call


def open_dataset(dataset: str, folder: Path | None, *, option: str = "--data.path") -> Any:
    """Opens a prepared dataset; the code that prepared it is not needed.

    Args:
        dataset: NAME, NAME/CONFIG or NAME/CONFIG/VERSION; without a version, the newest.
        folder: TFDS's data_dir; None: $TFDS_DATA_DIR, otherwise ~/tensorflow_datasets.
        option: name of the option for the folder, for messages.

    Returns:
        The TFDS builder.

    Raises:
        BadInput: the dataset is missing, has several configurations, or has a format without
            random access.
    """
    home = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    root = (Path(home) if folder is None else folder).expanduser()
    where = root / dataset.replace(":", "/")
    found = [where] if (where / INFO).is_file() else _versions(where)
    if not found:
        remedy = _how_to_prepare(dataset, root, option)
        raise BadInput(f"{where} holds no prepared dataset; {remedy}")
    configs = sorted({str(version.parent.relative_to(root)) for version in found})
    require(
        len(configs) == 1,
        f"dataset {dataset} has several configurations: name one of {', '.join(configs)}",
    )
    import tensorflow_datasets as tfds  # takes two seconds

    newest = max(found, key=_version)
    try:
        builder = tfds.builder_from_directory(str(newest))
    except Exception as error:  # TFDS raises many kinds
        reason = one_line(error)[:200]
        raise BadInput(f"{newest} cannot be read as a TFDS dataset: {reason}") from error
    format_ = getattr(builder.info.file_format, "value", None)
    if format_ != "array_record":
        remedy = _how_to_prepare(dataset, root, option)
        raise BadInput(f"{newest} is in the format {format_}, which has no random access; {remedy}")
    return builder


@contextlib.contextmanager
def reading(builder: Any) -> Iterator[None]:
    """Turns an error while records are read, which may be of any kind, into `BadInput`."""
    try:
        yield
    except Exception as error:
        reason = one_line(error)[:200] or type(error).__name__
        raise BadInput(f"{builder.data_path} is damaged: {reason}; prepare it again") from error


class Texts:
    """The texts of a split, in order, read in small batches."""

    def __init__(self, builder: Any, split: str, feature: str) -> None:
        """Opens a split.

        Args:
            builder: of `open_dataset`.
            split: its name, or a slice of it.
            feature: name of the feature with the text.

        Raises:
            BadInput: the split or the feature does not exist.
        """
        name, known = split.partition("[")[0], list(builder.info.splits)
        require(
            name in known,
            f"{builder.info.full_name} has no split {name!r}, only {', '.join(known)}; choose with "
            "--data.split and --data.validation-split, slices such as train[95%:] work",
        )
        features = builder.info.features
        require(
            feature in features and str(features[feature].np_dtype) in ("object", "<class 'str'>"),
            f"{builder.info.full_name} has no text feature {feature!r}; its features are "
            f"{', '.join(sorted(features))}, choose with --data.text-feature",
        )
        try:
            self._source = builder.as_data_source(split=split)
        except (ValueError, AssertionError) as error:
            raise BadInput(f"TFDS split {split!r}: {str(error).splitlines()[0]}") from error
        self._builder, self._feature = builder, feature

    def __len__(self) -> int:
        with reading(self._builder):
            return len(self._source)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            with reading(self._builder):
                rows = range(start, min(start + _AT_ONCE, len(self)))
                texts = [example[self._feature] for example in self._source.__getitems__(rows)]
                decoded = [text if isinstance(text, str) else text.decode() for text in texts]
            yield from decoded


def identity(builder: Any, split: str, feature: str) -> str:
    """A fingerprint of a split: names, counts, and sizes of its files."""
    info = builder.info.splits[split.partition("[")[0]]
    with reading(builder):
        sizes = [Path(path).stat().st_size for path in sorted(map(str, info.filepaths))]
    return fingerprint(builder.info.full_name, split, feature, info.num_examples, sizes)


def _versions(where: Path) -> list[Path]:
    """Prepared folders of every version and configuration below a folder."""
    files = [path for depth in ("*", "*/*") for path in where.glob(f"{depth}/{INFO}")]
    return [path.parent for path in files if "incomplete" not in path.parent.name]


def _version(folder: Path) -> tuple[int, ...]:
    """Version of a prepared folder, to find the newest."""
    return tuple(int(number) for number in folder.name.split(".") if number.isdecimal())


def _how_to_prepare(dataset: str, root: Path, option: str) -> str:
    """The command that prepares a dataset, if TFDS has it."""
    import tensorflow_datasets as tfds  # takes two seconds

    name, elsewhere = dataset.partition("/")[0], ":" in dataset
    if not elsewhere and name not in tfds.list_builders(with_community_datasets=False):
        return (
            f"TFDS has none called {name}: prepare one of your own (file_format='array_record'), "
            f"name another with --data.dataset, or choose another folder with {option}"
        )
    return (
        'prepare it once, TensorFlow installed: python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{dataset}', data_dir='{root}', file_format='array_record')"
        f'.download_and_prepare()", or choose another folder with {option}'
    )
