import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.hf import grow_vocabulary, load_pretrained

FOLDERS = ["hf_torch/llama3", "hf_flax/llama"]


@pytest.fixture
def folder(shared, tmp_path):
    """A writable copy of the small scaled-rope Llama checkpoint."""
    target = tmp_path / "llama3"
    target.mkdir()
    for file in (shared / "fixtures/hf_torch/llama3").iterdir():
        shutil.copyfile(file, target / file.name)
    return target


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_match_transformers(shared, name):
    expected = np.load(shared / "fixtures" / name / "expected.npz")
    model, _ = load_pretrained(shared / "fixtures" / name)
    real = expected["attention_mask"] == 1
    logits = model(expected["input_ids"], expected["attention_mask"])
    np.testing.assert_allclose(np.asarray(logits)[real], expected["logits"][real], atol=2e-4)


def test_greedy_generation_matches_transformers(shared):
    expected = np.load(shared / "fixtures/hf_torch/llama3/expected.npz")
    model, _ = load_pretrained(shared / "fixtures/hf_torch/llama3")
    prompt = expected["input_ids"].shape[1]
    new = generate(model, expected["input_ids"], expected["attention_mask"], expected["greedy"].shape[1] - prompt)
    np.testing.assert_array_equal(new, expected["greedy"][:, prompt:])


def test_several_files_with_an_index_are_one_model(shared, folder):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001.safetensors": names[::2], "model-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    expected = np.load(shared / "fixtures/hf_torch/llama3/expected.npz")
    whole, _ = load_pretrained(shared / "fixtures/hf_torch/llama3")
    split, _ = load_pretrained(folder)
    np.testing.assert_array_equal(split(expected["input_ids"]), whole(expected["input_ids"]))
    (folder / "model-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00002"):
        load_pretrained(folder)


def test_missing_and_unexpected_tensors_stand_in_one_error(folder):
    def change(tensors):
        tensors["model.layers.7.odd.weight"] = tensors.pop("model.norm.weight")

    edit_tensors(folder, change)
    with pytest.raises(WeightsError, match=r"norm/scale.*model\.layers\.7\.odd\.weight"):
        load_pretrained(folder)


def test_a_config_that_does_not_fit_the_weights_is_refused_by_name(folder):
    edit_config(folder, intermediate_size=65)
    with pytest.raises(WeightsError, match=r"blocks/0/mlp/down/kernel is \(64, 32\), \(65, 32\) wanted"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'"),
    ],
)
def test_what_this_decoder_cannot_do_is_refused_by_field(folder, change, message):
    edit_config(folder, **change)
    with pytest.raises(WeightsError, match=message):
        load_pretrained(folder)


def test_damaged_weights_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(WeightsError, match=r"llama3: a file of weights is damaged"):
        load_pretrained(folder)


def test_damaged_flax_weights_are_named(folder, shared):
    (folder / "model.safetensors").unlink()
    flax = (shared / "fixtures/hf_flax/llama/flax_model.msgpack").read_bytes()
    (folder / "flax_model.msgpack").write_bytes(flax[:-50])
    with pytest.raises(WeightsError, match=r"llama3: a file of weights is damaged"):
        load_pretrained(folder)


def test_missing_files_and_fields_are_named(folder):
    edit_config(folder, rms_norm_eps=1e-5)
    config = json.loads((folder / "config.json").read_text())
    del config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="num_hidden_layers"):
        load_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json: no such file"):
        load_pretrained(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor flax_model\.msgpack"):
        load_pretrained(folder)


@pytest.mark.parametrize("name", FOLDERS)
def test_growing_the_vocabulary_keeps_the_old_logits_and_adds_rows_near_their_mean(shared, name):
    expected = np.load(shared / "fixtures" / name / "expected.npz")
    model, _ = load_pretrained(shared / "fixtures" / name)
    before = model(expected["input_ids"])
    old = np.asarray(model.embedding[...])
    grown = grow_vocabulary(model, 200, jax.random.key(0))
    rows = np.asarray(grown.embedding[...])
    assert rows.shape == (200, 32) and grown(expected["input_ids"]).shape[-1] == 200
    np.testing.assert_array_equal(rows[:160], old)
    np.testing.assert_allclose(rows[160:], np.tile(old.mean(0), (40, 1)), atol=1e-3)
    assert np.ptp(rows[160:], axis=0).min() > 0
    np.testing.assert_allclose(grown(expected["input_ids"])[..., :160], before, atol=1e-5)
