"""The key under which a recording's symbols are kept."""

from ecgbyte_jax.prepare.symbol_cache import record_key


def test_the_segments_of_a_recording_are_in_its_key(tmp_path):
    (tmp_path / "r.hea").write_text("r/2 12 500 1000\ns_1 500\ns_2 500\n~ 3\n")
    found = set()
    for name in ("s_1.hea", "s_1.dat", "s_2.hea", "s_2.dat", "s_2.dat"):
        (tmp_path / name).write_text("x" * len(found))
        found.add(record_key(tmp_path / "r", tmp_path))
    assert len(found) == 5


def test_a_header_that_is_none_has_a_key(tmp_path):
    (tmp_path / "r.hea").write_bytes(b"r 1 500\n\xff\0.dat 16\n../x.dat 16\n. 16\n" + b"a" * 5000 + b".dat 16\n")
    (tmp_path / "s.hea").mkdir()
    assert record_key(tmp_path / "r", tmp_path) != record_key(tmp_path / "s", tmp_path)
