import numpy as np
import pytest

from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.batches import open_split, prompt_batch, training_batches
from ecgbyte_jax.inputs.plan import Layout, Plan
from ecgbyte_jax.inputs.prompt import PromptIds
from ecgbyte_jax.inputs.shards import (
    Manifest,
    Sequence,
    SplitSummary,
    ecg_to_bytes,
    read_ecg,
    read_lengths,
    read_manifest,
    verify,
    write_lengths,
    write_manifest,
    write_shard,
)
from tests.prompts import plain_prompt, plain_text

IDS = PromptIds(bos=1, eos=2, pad=0, sig_start=3, sig_end=4, ecg=np.arange(100, 130, dtype=np.int32))


ECGS = [np.array([1, 2]), np.array([3, 4, 5]), np.array([6])]


def sequence(number: int) -> Sequence:
    """A sequence whose answer token encodes its number."""
    return Sequence(
        f"e{number}", f"p{number}", 0, "why?", f"a{number}", {"n": number}, (ECGS[number % 3],),
        plain_text(IDS, [50], [1000 + number]), (("what?", "this"),), "e",
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Ten training sequences in files of four, two for test, none for validation."""
    shards = tmp_path / "shards"
    files = {"train-0": range(4), "train-1": range(4, 8), "train-2": range(8, 10), "test-0": range(10, 12)}
    written = {name: write_shard(shards / name, (sequence(n).to_bytes([n % 3]) for n in ns)) for name, ns in files.items()}
    written["ecg-0"] = write_shard(shards / "ecg-0", map(ecg_to_bytes, ECGS[:2]))
    written["ecg-1"] = write_shard(shards / "ecg-1", map(ecg_to_bytes, ECGS[2:]))
    for split, count in (("train", 10), ("test", 2)):
        written[f"{split}-lengths"] = write_lengths(
            shards / f"{split}-lengths", np.array([[6 + len(ECGS[n % 3]), 2] for n in range(count)])
        )
    train = SplitSummary(["train-0", "train-1", "train-2"], "train-lengths", 10, 10, 1, 0, 80, 8, 2)
    splits = {"train": train, "valid": SplitSummary(), "test": SplitSummary(["test-0"], "test-lengths", 2, 2, 0, 0, 16, 8, 2)}
    write_manifest(shards, Manifest(splits, ["ecg-0", "ecg-1"], written, {}, {"": "a0"}, "plain", "", 0))
    return shards


def training(folder, batch_size=3, epochs=1.0, layout=Layout(12), rows=None):
    manifest = read_manifest(folder)
    plan = Plan(read_lengths(folder, manifest, "train"), layout, batch_size, epochs, seed=0)
    return training_batches(open_split(folder, manifest, "train"), plan, IDS, layout.max_length, rows)


def answers(batch) -> list[int]:
    """The numbers of a batch's sequences, row by row."""
    return [int(target) - 1000 for row in zip(batch["targets"], batch["answer_mask"]) for target in row[0][row[1]][::2]]


def test_a_sequence_survives_its_bytes():
    before = sequence(5)
    after = Sequence.from_bytes(before.to_bytes([7, 3]), lambda place: np.array([place]))
    assert [ecg.tolist() for ecg in after.ecgs] == [[7], [3]]
    for name in ("id", "patient", "segment", "question", "answer", "meta", "history", "previous"):
        assert getattr(after, name) == getattr(before, name)
    for name in ("ids", "answers", "prompt"):
        np.testing.assert_array_equal(getattr(after.text, name), getattr(before.text, name))
    assert after.prompt.tolist() == [1, 3, 4, 50]


def test_manifest_counts_what_was_written(folder):
    written = read_manifest(folder).written
    assert {name: file.records for name, file in written.items()} == {
        "train-0": 4, "train-1": 4, "train-2": 2, "test-0": 2, "ecg-0": 2, "ecg-1": 1, "train-lengths": 10, "test-lengths": 2
    }  # fmt: skip
    assert all(file.bytes == (folder / name).stat().st_size for name, file in written.items())


def test_ecg_tokens_survive_serialisation():
    ids = np.array([0, 25, 26, 65535], np.int32)
    assert read_ecg(ecg_to_bytes(ids)).tolist() == ids.tolist()


def test_a_sequence_comes_back_with_the_tokens_of_its_segments(folder):
    dataset = open_split(folder, read_manifest(folder), "train")
    assert [dataset[i].ecgs[0].tolist() for i in range(4)] == [[1, 2], [3, 4, 5], [6], [1, 2]]


def test_splits_add_up():
    both = SplitSummary(["a"], "l", 1, 2, 0, 2, 30, 9, 3)
    both.add(SplitSummary(["b"], "l", 2, 3, 1, 3, 40, 7, 4))
    assert both == SplitSummary(["a", "b"], "l", 3, 5, 1, 5, 70, 9, 4)


def test_a_changed_byte_is_found_by_the_checksum(folder):
    manifest = read_manifest(folder)
    verify(folder, manifest)
    data = bytearray((folder / "train-1").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "train-1").write_bytes(data)
    with pytest.raises(ShardsError, match=r"\['train-1'\] are damaged"):
        verify(folder, manifest)


def test_an_interrupted_shard_leaves_no_file(tmp_path):
    def records():
        yield b"one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a", records())
    assert not list(tmp_path.iterdir())


def test_a_split_is_read_completely_and_in_order(folder):
    dataset = open_split(folder, read_manifest(folder), "train")
    assert [dataset[i].id for i in range(len(dataset))] == [f"e{n}" for n in range(10)]


def test_every_epoch_holds_every_sequence_in_another_order(folder):
    batches = training(folder, batch_size=5, epochs=2)
    order = [answer for i in range(4) for answer in answers(batches[i])]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10)) and order[:10] != order[10:]


def test_batches_depend_only_on_seed_and_step(folder):
    first, second = training(folder, epochs=3), training(folder, epochs=3)
    assert [answers(first[i]) for i in range(10)] == [answers(second[9 - i]) for i in range(10)][::-1]
    resumed = iter(second[4:].to_iter_dataset())
    assert answers(next(resumed)) == answers(first[4])


def test_a_subset_of_rows_equals_those_of_the_full_batch(folder):
    full, subset = training(folder, batch_size=4), training(folder, batch_size=4, rows=np.array([1, 2]))
    for step in range(2):
        assert answers(subset[step]) == answers(full[step])[1:3]


def test_shapes_and_types(folder):
    batch = training(folder)[0]
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "input_ids": ((3, 12), "int32"),
        "positions": ((3, 12), "int32"),
        "segment_ids": ((3, 12), "int32"),
        "answer_places": ((3, 8), "int32"),
        "targets": ((3, 8), "int32"),
        "answer_mask": ((3, 8), "bool"),
    }


def test_a_packed_epoch_holds_every_sequence_once_in_fewer_rows(folder):
    batches = training(folder, batch_size=1, layout=Layout(20, packing=True))
    rows = [answers(batches[i]) for i in range(len(batches))]
    assert sorted(number for row in rows for number in row) == list(range(10)) and len(rows) == 5
    assert {(batches[i]["segment_ids"].max()) for i in range(5)} == {2}


def test_rows_have_the_length_of_the_shortest_bucket_that_fits(folder):
    batches = training(folder, batch_size=2, layout=Layout(12, buckets=(7, 8)))
    shapes = [batches[i]["input_ids"].shape for i in range(len(batches))]
    assert sorted(shapes) == [(2, 7), (2, 8), (2, 8), (2, 12), (2, 12)]  # lengths 7 7 7 8 8 8 8 9 9 9, in pairs
    assert sorted(number for i in range(5) for number in answers(batches[i])) == list(range(10))


def test_too_few_sequences_for_a_batch_are_refused(folder):
    with pytest.raises(ShardsError, match=r"10 sequences .*batch_size 11"):
        training(folder, batch_size=11)


def test_an_empty_split_is_refused_with_the_counts(folder):
    with pytest.raises(ShardsError, match=r"'valid' .* is empty.*'train': 10"):
        open_split(folder, read_manifest(folder), "valid")


def test_a_missing_file_or_manifest_is_named(folder):
    (folder / "train-1").unlink()
    with pytest.raises(ShardsError, match="train-1"):
        read_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ShardsError, match=r"manifest\.json: no such file"):
        read_manifest(folder)


def test_prompts_share_prefixes_and_the_last_one_fills_unused_rows():
    one, two = (np.array([1]),), (np.array([2, 1]),)
    prompts = [(one, plain_prompt(IDS, [50])), (two, plain_prompt(IDS, [51])), (one, plain_prompt(IDS, [52, 53]))]
    batch, rows = prompt_batch(IDS, prompts, 6, 8, each=2)
    assert batch["input_ids"][:, -2:].tolist() == [[0, 50], [52, 53]] + [[0, 51]] * 4
    assert batch["attention_mask"].sum(axis=1).tolist() == [1, 2, 1, 1, 1, 1] and rows == [0, 2, 1]
    starts, mask = batch["shared"]
    assert starts.tolist() == [[0] * 4 + [1, 3, 101, 4]] + [[0] * 3 + [1, 3, 102, 101, 4]] * 2
    assert mask.sum(axis=1).tolist() == [4, 5, 5]


def test_an_ecg_truncated_for_a_longer_question_is_shared_up_to_the_cut():
    ecgs = (np.array([1, 1, 2]),)
    batch, rows = prompt_batch(IDS, [(ecgs, plain_prompt(IDS, [50])), (ecgs, plain_prompt(IDS, [50, 51]))], 2, 8, each=2)
    assert rows == [0, 1] and batch["input_ids"][:, -3:].tolist() == [[102, 4, 50], [4, 50, 51]]
    starts, mask = batch["shared"]
    assert starts.tolist() == [[0, 0, 0, 0, 1, 3, 101, 101]] and mask.sum() == 4


def test_the_same_question_twice_leaves_a_token_to_each():
    batch, _ = prompt_batch(IDS, [((np.array([1]),), plain_prompt(IDS, [50]))] * 2, 2, 8, each=2)
    assert batch["input_ids"][:, -1].tolist() == [50, 50] and batch["attention_mask"].sum() == 2
