import numpy as np
import pytest

from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.batches import open_split, prompt_batch, training_batches
from ecgbyte_jax.inputs.prompt import PromptIds
from ecgbyte_jax.inputs.shards import Sequence, ShardWriter, read_manifest

IDS = PromptIds(bos=1, eos=2, pad=0, sig_start=3, sig_end=4, ecg=np.arange(100, 130, dtype=np.int32))


def sequence(number: int) -> Sequence:
    """One whose answer token tells its number."""
    return Sequence(
        f"e{number}", f"p{number}", 0, "why?", f"a{number}", np.array([1, 2]), np.array([50]), np.array([1000 + number])
    )


@pytest.fixture
def folder(tmp_path):
    """Ten training sequences in files of four, two for test, none for validation."""
    with ShardWriter(tmp_path / "shards", sequences_per_file=4) as writer:
        for number in range(10):
            writer.write("train", sequence(number), 8, cut=number == 3)
        for number in range(10, 12):
            writer.write("test", sequence(number), 8, cut=False)
        writer.finish()
    return tmp_path / "shards"


def training(folder, batch_size=3, epochs=1.0, **more):
    dataset = open_split(folder, read_manifest(folder), "train")
    return training_batches(dataset, IDS, 12, batch_size, epochs, seed=0, **more)


def answers(batch) -> list[int]:
    return (batch["input_ids"][:, -2] - 1000).tolist()


def test_a_sequence_survives_its_bytes():
    before = sequence(5)
    after = Sequence.from_bytes(before.to_bytes())
    for name in ("id", "patient", "segment", "question", "answer"):
        assert getattr(after, name) == getattr(before, name)
    for name in ("ecg", "question_ids", "answer_ids"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_manifest_counts_what_was_written(folder):
    manifest = read_manifest(folder)
    train = manifest.splits["train"]
    assert len(train.files) == 3 and (train.sequences, train.examples, train.ecg_cut, train.tokens) == (10, 10, 1, 80)
    assert (train.longest_sequence, train.longest_answer) == (8, 2)
    assert manifest.commonest == {"why?": "a0", "": "a0"}


def test_the_whole_split_comes_back_in_order(folder):
    dataset = open_split(folder, read_manifest(folder), "train")
    assert [dataset[i].id for i in range(len(dataset))] == [f"e{n}" for n in range(10)]


def test_every_epoch_holds_every_sequence_in_another_order(folder):
    batches = training(folder, batch_size=5, epochs=2)
    order = [answer for i in range(4) for answer in answers(batches[i])]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10)) and order[:10] != order[10:]


def test_batches_depend_on_the_seed_and_step_alone(folder):
    first, second = training(folder, epochs=3), training(folder, epochs=3)
    assert [answers(first[i]) for i in range(10)] == [answers(second[9 - i]) for i in range(10)][::-1]
    resumed = iter(second[4:].to_iter_dataset())
    assert answers(next(resumed)) == answers(first[4])


def test_batches_do_not_depend_on_the_number_of_hosts(folder):
    whole = training(folder, batch_size=4)
    halves = [training(folder, batch_size=4, host=h, hosts=2) for h in range(2)]
    for step in range(2):
        assert sorted(answers(whole[step])) == sorted(answers(halves[0][step]) + answers(halves[1][step]))


def test_shapes_and_types(folder):
    batch = training(folder)[0]
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "input_ids": ((3, 12), "int32"),
        "attention_mask": ((3, 12), "bool"),
        "positions": ((3, 12), "int32"),
        "loss_mask": ((3, 12), "bool"),
    }


def test_too_few_sequences_for_a_batch_are_refused(folder):
    with pytest.raises(ShardsError, match=r"10 sequences .*batch_size 11"):
        training(folder, batch_size=11)


def test_an_empty_split_is_refused_with_the_counts(folder):
    with pytest.raises(ShardsError, match=r"'valid' .* is empty.*'train': 10"):
        open_split(folder, read_manifest(folder), "valid")


def test_a_missing_file_or_manifest_is_named(folder):
    (folder / "train-00001.array_record").unlink()
    with pytest.raises(ShardsError, match="train-00001"):
        read_manifest(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ShardsError, match=r"manifest\.json: no such file"):
        read_manifest(folder)


def test_prompt_batch_fills_missing_rows_with_the_last_prompt():
    batch = prompt_batch(IDS, [(np.array([1]), np.array([50])), (np.array([2]), np.array([51]))], 4, 6)
    assert batch["input_ids"].tolist() == [[0, 1, 3, 101, 4, 50]] + [[0, 1, 3, 102, 4, 51]] * 3
