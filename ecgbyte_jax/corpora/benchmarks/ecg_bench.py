"""ECGBench (Liu et al. 2024, arXiv 2410.19008): PULSE's test sets, about recordings of several sets."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ecgbyte_jax.corpora.conversations import read_linked
from ecgbyte_jax.corpora.example import Example, Rejected

OWN_SPLIT = "own_split"  # the field of an example's meta with the split that its recording has in its own set
# Test sets of pictures that are of no recording, and so cannot be asked here.
PICTURES = ("arena", "mmmu-ecg")


def read_tests(path: Path, root: Path, sample_rate: int) -> Iterator[Example | Rejected]:
    """Yields every question of the test sets in a folder, all in the split "test", with their set as `question_type`.

    The sets are folders of parquet files, as downloaded, or JSON files of their names. Those of `PICTURES` are not read. root,
    sample_rate, errors: as in `read_linked`.
    """
    for item in read_linked(path, root, sample_rate, _test_set):
        if isinstance(item, Example):
            yield replace(item, split="test", meta=item.meta | {OWN_SPLIT: item.split})
        else:
            yield item


def pictures_in(path: Path) -> list[str]:
    """The test sets in a folder that are not read."""
    files = (file for file in path.rglob("*") if file.suffix in (".parquet", ".json"))
    return sorted({*map(_name, files)} & {*PICTURES})


def _name(file: Path) -> str:
    return file.parent.name if file.suffix == ".parquet" else file.stem


def _test_set(file: Path) -> str | None:
    return None if _name(file) in PICTURES else _name(file)
