"""The cache of symbols: the key of a recording, and parts that are damaged."""

import numpy as np
import pytest

from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.prepare.symbol_cache import SymbolCache, record_key, write_part

PINNED = 10575745795832797819  # a cache that is there stays of use


def test_the_segments_of_a_recording_are_in_its_key(tmp_path):
    (tmp_path / "r.hea").write_text("r/2 12 500 1000\ns_1 500\ns_2 500\n~ 3\n")
    found = set()
    for name in ("s_1.hea", "s_1.dat", "s_2.hea", "s_2.dat", "s_2.dat"):
        (tmp_path / name).write_text("x" * len(found))
        found.add(record_key(WfdbRecord(tmp_path, "r")))
    assert len(found) == 5


def test_a_header_that_is_none_has_a_key(tmp_path):
    (tmp_path / "r.hea").write_bytes(b"r 1 500\n\xff\0.dat 16\n../x.dat 16\n. 16\n" + b"a" * 5000 + b".dat 16\n")
    (tmp_path / "s.hea").mkdir()
    assert record_key(WfdbRecord(tmp_path, "r")) != record_key(WfdbRecord(tmp_path, "s"))


def test_recordings_made_by_other_settings_have_other_keys_and_times_do_not_count(tmp_path):
    keys = set()
    for made_by, content in (("seed 0", "x"), ("seed 0", "x"), ("seed 1", "x")):
        for ending in (".hea", ".dat"):
            (tmp_path / f"r{ending}").write_text(content)
        keys.add(record_key(WfdbRecord(tmp_path, "r"), made_by))
    assert len(keys) == 2 and PINNED in keys


@pytest.mark.parametrize("place", range(8, 60, 3))
def test_a_part_with_a_damaged_head_is_made_again(tmp_path, place):
    write_part(tmp_path, 4, [(7, np.zeros((1, 12, 4), np.uint8), {})])
    (part,) = tmp_path.iterdir()
    content = bytearray(part.read_bytes())
    content[place] ^= 0xFF
    part.write_bytes(content)
    cache = SymbolCache(tmp_path)  # found again only where the damage is in a number of the table
    assert part.exists() or cache.find(np.array([7], np.uint64)).tolist() == [-1]
