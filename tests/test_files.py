import numpy as np
import pytest

from ecgbyte_jax.files import read_arrays, write_arrays, write_whole


def test_a_file_is_written_with_its_folder_and_nothing_beside_it(tmp_path):
    write_whole(tmp_path / "new/a.json", [b"te", b"xt"])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"]
    assert (tmp_path / "new/a.json").read_text() == "text"


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path):
    def pieces():
        yield b"new"
        raise RuntimeError("broken off")

    (tmp_path / "a.json").write_text("old")
    with pytest.raises(RuntimeError):
        write_whole(tmp_path / "a.json", pieces())
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "old"


def test_arrays_come_back_and_damaged_ones_do_not(tmp_path):
    path, arrays = tmp_path / "new/a.npz", {"a": np.arange(5.0), "b": np.array(["x"])}
    assert read_arrays(path) is None
    write_arrays(path, **arrays)
    assert {name: found.tolist() for name, found in read_arrays(path).items()} == {"a": [0, 1, 2, 3, 4], "b": ["x"]}
    content = path.read_bytes()
    for damaged in (b"", content[:-1], content[1:], bytes([content[0] ^ 1]) + content[1:], content[:-1] + b"\0\0"):
        path.write_bytes(damaged)
        assert read_arrays(path) is None
