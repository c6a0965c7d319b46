"""The file of answers, as a run that was killed goes on with it."""

from pathlib import Path

import pytest

from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.evaluate.generations import FIELDS, Key, append, keep_whole_batches, read_rows


def test_whole_batches_are_kept_and_the_lines_after_them_are_removed(tmp_path):
    path = tmp_path / "generations.jsonl"
    keys = [Key(str(number), 0, seed) for seed in (0, 1) for number in range(4)]
    batches = [keys[start : start + 2] for start in range(0, 8, 2)]
    rows = [dict.fromkeys(FIELDS, "") | key._asdict() for key in keys]
    assert keep_whole_batches(path, batches) == 0
    append(path, rows[:5])
    with path.open("ab") as file:
        file.write(b'{"id"')  # killed
    assert keep_whole_batches(path, batches) == 2 and read_rows(path) == rows[:4]
    other_seed = [[key._replace(seed=2) for key in batch] for batch in batches]
    assert keep_whole_batches(path, [batches[0], *other_seed[1:]]) == 1 and read_rows(path) == rows[:2]
    assert keep_whole_batches(path, other_seed) == 0 and read_rows(path) == []


def test_a_doubled_key_is_refused_and_the_file_is_repaired_by_going_on(tmp_path):
    path = tmp_path / "generations.jsonl"
    keys = [Key(str(number), 0, 0) for number in range(4)]
    rows = [dict.fromkeys(FIELDS, "") | key._asdict() for key in keys]
    append(path, [*rows[:2], rows[1], *rows[2:]])
    with pytest.raises(ScoresError, match=r"line 3 has the same example, segment and seed as line 2"):
        read_rows(path)
    assert keep_whole_batches(path, [keys[:2], keys[2:]]) == 1 and read_rows(path) == rows[:2]


def test_answers_that_the_disk_does_not_take_name_the_file():
    with pytest.raises(OSError, match="No space left") as raised:
        append(Path("/dev/full"), [{"id": "a"}])
    assert raised.value.filename == "/dev/full"
