from pathlib import Path

import numpy as np
import pytest

from ecgbyte_jax.corpora.example import Example, published_splits, split_of, wfdb_record
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import ExampleError

ROOT = Path("/data")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "", ".", "a\0b"])
def test_a_path_that_leaves_the_root_is_refused(name):
    with pytest.raises(ExampleError, match="inside the data's root"):
        wfdb_record(ROOT, name)


@pytest.mark.parametrize("name", ["a/b", "a/b.hea", "a/b.dat", "a/../a/b", "./a/b"])
def test_a_path_inside_is_the_record_without_extension(name):
    assert wfdb_record(ROOT, name) == WfdbRecord(ROOT, "a/b")


def test_patients_are_split_by_their_names_alone():
    splits = [split_of(f"p{n}") for n in range(5000)]
    assert splits == [split_of(f"p{n}") for n in range(5000)]
    assert [round(splits.count(s) / 5000, 1) for s in ("train", "valid", "test")] == [0.8, 0.1, 0.1]


def test_the_published_split_is_scikit_learn_s():
    sklearn = pytest.importorskip("sklearn.model_selection")
    for count in (10, 413, 1001):
        train, rest = sklearn.train_test_split(np.arange(count), test_size=0.3, random_state=42)
        valid, test = sklearn.train_test_split(rest, test_size=0.6, random_state=42)
        splits = published_splits(count)
        for name, numbers in (("train", train), ("valid", valid), ("test", test)):
            assert [i for i, split in enumerate(splits) if split == name] == sorted(numbers.tolist())


def test_half_a_character_is_refused():
    with pytest.raises(ExampleError, match="half a character"):
        Example("1", "p", "train", (WfdbRecord(ROOT, "a"),), "why?", "\ud800")
    with pytest.raises(ExampleError, match="no recording"):
        Example("1", "p", "train", (), "why?", "so")
