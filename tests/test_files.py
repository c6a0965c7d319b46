import errno

import pytest

from ecgbyte_jax.files import write_whole


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


def test_a_write_that_fails_names_the_file(tmp_path):
    def full():
        yield b"te"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as told:
        write_whole(tmp_path / "a.json", full())
    assert told.value.filename == str(tmp_path / "a.json") and not list(tmp_path.iterdir())
