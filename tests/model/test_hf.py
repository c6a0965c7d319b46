import json
import os
import shutil
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from huggingface_hub import errors as hub
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model import hf, vocabulary
from ecgbyte_jax.model.decoder import NewRows
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.hf import load_pretrained, save_pretrained
from ecgbyte_jax.model.lora import LoraConfig, add_lora
from ecgbyte_jax.model.sharding import make_mesh, parameter_shardings
from ecgbyte_jax.model.vocabulary import grow_vocabulary
from ecgbyte_jax.model.weights.stored import stored_tensors
from ecgbyte_jax.model.weights.written import tensor_file

FLAX = [f"hf_flax/{name}" for name in ("llama", "mistral", "gemma", "gpt2", "opt")]
TORCH = [f"hf_torch/{name}" for name in ("llama3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "opt")]


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


@pytest.mark.parametrize("name", FLAX + TORCH)
def test_logits_match_transformers(shared, name):
    expected = np.load(shared / "fixtures" / name / "expected.npz")
    model, _ = load_pretrained(shared / "fixtures" / name)
    real = expected["attention_mask"] == 1
    logits = np.asarray(model(expected["input_ids"], expected["attention_mask"]))
    np.testing.assert_allclose(logits[real], expected["logits"][real], atol=2e-4)


@pytest.mark.parametrize("name", TORCH)
def test_the_loss_matches_transformers(shared, name):
    expected = np.load(shared / "fixtures" / name / "expected.npz")
    model, _ = load_pretrained(shared / "fixtures" / name, scan_layers=True)
    logits = model(expected["input_ids"], expected["attention_mask"])[:, :-1]
    labels = expected["labels"][:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, np.maximum(labels, 0))
    np.testing.assert_allclose(losses[labels >= 0].mean(), expected["loss"], atol=1e-5)


@pytest.mark.parametrize("name", TORCH)
def test_greedy_generation_matches_transformers_with_and_without_the_cache(shared, name):
    expected = np.load(shared / "fixtures" / name / "expected.npz")
    model, _ = load_pretrained(shared / "fixtures" / name)
    ids, mask, greedy = expected["input_ids"], expected["attention_mask"], expected["greedy"]
    new = greedy.shape[1] - ids.shape[1]
    np.testing.assert_array_equal(generate(model, ids, mask, new), greedy[:, ids.shape[1] :])
    # One pass over the finished rows: every new token is the likeliest after its predecessors.
    full_mask = np.concatenate([mask, np.ones((len(mask), new), mask.dtype)], axis=1)
    likeliest = np.asarray(model(greedy, full_mask).argmax(-1))
    np.testing.assert_array_equal(likeliest[:, ids.shape[1] - 1 : -1], greedy[:, ids.shape[1] :])


@pytest.mark.parametrize(
    "name, layout, scan",
    [
        ("hf_torch/llama3", (2, 2, 2), False),
        ("hf_torch/llama3", (1, 8, 1), True),
        ("hf_torch/gpt2", (1, 2, 4), True),
        ("hf_torch/gemma2", (2, 2, 2), False),
        ("hf_torch/opt", (1, 2, 4), False),
    ],
)
def test_weights_split_over_a_mesh_give_the_same_logits(shared, name, layout, scan):
    expected = np.load(shared / "fixtures" / name / "expected.npz")
    ids, mask = (np.resize(expected[key], (8, expected[key].shape[1])) for key in ("input_ids", "attention_mask"))
    alone, _ = load_pretrained(shared / "fixtures" / name)
    mesh = make_mesh(*layout)
    split, _ = load_pretrained(shared / "fixtures" / name, scan_layers=scan, shard=partial(parameter_shardings, mesh=mesh))
    for path, leaf in nnx.to_flat_state(nnx.state(split)):
        expected_sharding = parameter_shardings({"/".join(map(str, path)): leaf[...]}, mesh).popitem()[1]
        assert leaf[...].sharding == expected_sharding
        if path[-1] in ("kernel", "embedding"):  # at least 32 wide: every layout divides them
            parts = layout[1] * layout[2] if all(size % 8 == 0 for size in leaf.shape[-2:]) else layout[1]
            assert leaf[...].addressable_shards[0].data.size * parts == leaf[...].size, path
    with jax.set_mesh(mesh):
        graphdef, state = nnx.split(split)
        logits = jax.jit(lambda state, ids, mask: nnx.merge(graphdef, state)(ids, mask))(state, ids, mask)
    np.testing.assert_allclose(np.asarray(logits)[mask == 1], np.asarray(alone(ids, mask))[mask == 1], atol=1e-5)


def test_tensors_are_read_one_at_a_time(shared, monkeypatch):
    """Only the current tensor is on the host: a placed one is released before the next one is read."""
    alive, most = [], 0

    def watched(folder):
        nonlocal most
        for name, array in stored_tensors(folder):
            copy = array.copy()
            alive.append(weakref.ref(copy))
            most = max(most, sum(ref() is not None for ref in alive))
            del array
            yield name, copy
            del copy

    monkeypatch.setattr(hf, "stored_tensors", watched)
    mesh = make_mesh(1, 8, 1)
    load_pretrained(shared / "fixtures/hf_torch/llama3", shard=partial(parameter_shardings, mesh=mesh))
    assert len(alive) > 15 and most <= 2


@pytest.mark.parametrize("name", FLAX + TORCH)
def test_saving_and_loading_gives_the_same_model(shared, name, tmp_path):
    expected = np.load(shared / "fixtures" / name / "expected.npz")
    model, config = load_pretrained(shared / "fixtures" / name, scan_layers=True)
    save_pretrained(model, tmp_path, shard_bytes=8000)
    assert len([*tmp_path.glob("*.safetensors")]) > 2
    again, again_config = load_pretrained(tmp_path)
    assert replace(again_config, scan_layers=True) == config
    np.testing.assert_allclose(again(expected["input_ids"]), model(expected["input_ids"]), atol=1e-5)


def test_bfloat16_weights_are_written_and_read_to_the_bit(shared, tmp_path):
    model, _ = load_pretrained(shared / "fixtures/hf_torch/qwen2", param_dtype="bfloat16")
    save_pretrained(model, tmp_path)
    again, _ = load_pretrained(tmp_path, param_dtype="bfloat16")
    for a, b in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(again)), strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a, b)


def test_a_hub_id_is_found_in_the_cache_without_a_network(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub/models--someone--small/snapshots/abc"
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    (tmp_path / "hub/models--someone--small/refs").mkdir()
    (tmp_path / "hub/models--someone--small/refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hf, "snapshot_download", partial(hf.snapshot_download, cache_dir=tmp_path / "hub"))
    assert hf.locate("someone/small") == snapshot
    assert load_pretrained("someone/small")[1].width == 32
    with pytest.raises(WeightsError, match=r"no folder 'someone/other', hub id 'someone/other' is not in the cache"):
        load_pretrained("someone/other")


def test_a_hub_model_s_chat_template_is_downloaded_with_it(tmp_path, monkeypatch):
    patterns = []

    def download(name, allow_patterns):
        patterns.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hf, "snapshot_download", download)
    assert hf.locate("someone/small") == tmp_path
    assert len(patterns) == 2 and all("*.jinja" in each and "*.json" in each for each in patterns)


def test_a_gated_model_s_error_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise hub.GatedRepoError("gated", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(hf, "snapshot_download", refuse)
    with pytest.raises(WeightsError, match=r"'meta-llama/Llama-3.2-1B' is gated: accept its licence .* `hf auth login`"):
        load_pretrained("meta-llama/Llama-3.2-1B")


@pytest.mark.parametrize("name", ["/nowhere/at/all", "../no-such-folder", "a/b/c"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(WeightsError, match="a folder or a hub id expected"):
        load_pretrained(name)


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
    original, _ = load_pretrained(shared / "fixtures/hf_torch/llama3")
    split, _ = load_pretrained(folder)
    np.testing.assert_array_equal(split(expected["input_ids"]), original(expected["input_ids"]))
    (folder / "model-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00002"):
        load_pretrained(folder)


def test_missing_and_unexpected_tensors_are_named_in_one_error(folder):
    def change(tensors):
        tensors["model.layers.7.odd.weight"] = tensors.pop("model.norm.weight")

    edit_tensors(folder, change)
    with pytest.raises(WeightsError, match=r"no place for model\.layers\.7\.odd\.weight; no tensor for norm/scale"):
        load_pretrained(folder)


def test_a_config_that_does_not_fit_the_weights_is_refused_by_name(folder):
    edit_config(folder, intermediate_size=65)
    with pytest.raises(
        WeightsError, match=r"down_proj\.weight has shape \(64, 32\) for blocks/0/mlp/down/kernel, \(65, 32\) expected"
    ):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"model_type": "mamba"},
            r"config\.json: model_type 'mamba' found, one of \('llama', .*'gemma3_text', .*'opt'\)",
        ),
        ({"hidden_act": "swiglu"}, "hidden_act 'swiglu'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 found, a divisor of 4 heads"),
        ({"attention_bias": True}, r"no tensor for blocks/0/attention/k/bias"),
        ({"rope_parameters": {"rope_type": "default"}}, "field 'rope_theta' is missing"),
        ({"rope_scaling": {"rope_type": "default"}}, "rope_parameters and rope_scaling found, one of them expected"),
        ({"rope_parameters": {"rope_theta": 1e-5}}, "rope_theta 1e-05 found, a number from 1 on expected"),
        ({"hidden_size": 2, "head_dim": None}, "head_dim 0 found, an even number expected"),
        ({"rope_parameters": [1]}, r"rope_parameters or rope_scaling \[1\] found, an object expected"),
        ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta '1e4' found, a number above 0"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 found"),
        ({"rms_norm_eps": None}, "rms_norm_eps None found, a number above 0 expected"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan found"),
        ({"num_attention_heads": "6"}, "num_attention_heads '6' found, a whole number from 1 to 10000 expected"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 found"),
        ({"num_attention_heads": True}, "num_attention_heads True found"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 found, a whole number from 1 to 1000 expected"),
        ({"vocab_size": 10**400}, "vocab_size 1000000000.*found, a whole number"),
        ({"head_dim": 8.0}, "head_dim 8.0 found"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings 'false' found"),
        ({"attention_bias": "no"}, "attention_bias 'no' found"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config .*fp8.* found"),
        ({"head_dim": 7}, "head_dim 7 found, an even number expected"),
        ({"rope_parameters": {"rope_type": "su", "rope_theta": 1e4}}, "rope_type 'su' found, one of \\('default', 'linear'"),
    ],
)
def test_what_this_decoder_does_not_support_is_refused_by_field(folder, change, message):
    edit_config(folder, **change)
    with pytest.raises(WeightsError, match=message):
        load_pretrained(folder)


def test_a_llama_without_rope_theta_has_that_of_llama_2(shared, tmp_path):
    raw = json.loads((shared / "fixtures/hf_torch/llama3/config.json").read_text())
    del raw["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = hf.read_config(tmp_path)
    assert config.rope_theta == 10_000.0 and config.rope_scaling is None
    (tmp_path / "config.json").write_text(json.dumps(raw | {"model_type": "mistral"}))
    with pytest.raises(WeightsError, match="field 'rope_theta' is missing"):
        hf.read_config(tmp_path)


@pytest.mark.parametrize("files", [(1, 8000), (8000, 1), (20_000, 8000)])
def test_a_folder_of_another_model_is_overwritten(shared, tmp_path, files):
    ids = np.load(shared / "fixtures/hf_torch/llama3/expected.npz")["input_ids"]
    for seed, size in enumerate(files):
        model, _ = load_pretrained(shared / "fixtures/hf_torch/llama3")
        model.embedding = nnx.Param(jax.random.normal(jax.random.key(seed), model.embedding.shape))
        save_pretrained(model, tmp_path, shard_bytes=size if size > 1 else 10**9)
    np.testing.assert_allclose(load_pretrained(tmp_path)[0](ids), model(ids), atol=1e-5)
    index = tmp_path / "model.safetensors.index.json"
    known = {*json.loads(index.read_text())["weight_map"].values()} if index.exists() else {"model.safetensors"}
    assert {file.name for file in tmp_path.glob("*.safetensors")} == known


def test_a_partly_written_model_is_not_read(shared, tmp_path, monkeypatch):
    model, _ = load_pretrained(shared / "fixtures/hf_torch/llama3")
    save_pretrained(model, tmp_path, shard_bytes=8000)
    written = []

    def cut_off(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments)
        return tensor_file(*arguments)

    monkeypatch.setattr(hf, "tensor_file", cut_off)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(model, tmp_path, shard_bytes=8000)
    with pytest.raises(WeightsError, match=r"config\.json: no such file"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "weight_map",
    [{"a": 5}, {"a": None}, {"a": "../model.safetensors"}, {"a": "/etc/passwd"}, {"a": "x\0y"}, {}, [1], "x", None],
)
def test_an_index_with_anything_but_file_names_is_refused(folder, weight_map):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match=r"index\.json: field 'weight_map'"):
        load_pretrained(folder)


def test_quantised_weights_are_named_with_their_dtype(folder):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_torch(folder / "model.safetensors")
    for kind, message in (
        (torch.float8_e4m3fn, r"up_proj\.weight is of type F8_E4M3, float32, float16 or bfloat16 expected"),
        (torch.int8, r"up_proj\.weight holds int8, not float32"),
    ):
        save_torch(tensors | {name: tensors[name].to(kind)}, folder / "model.safetensors")
        with pytest.raises(WeightsError, match=message):
            load_pretrained(folder)


def test_a_tensor_that_is_stored_twice_is_refused(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"norm.weight": 2 * tensors["model.norm.weight"]}))
    with pytest.raises(WeightsError, match=r"norm\.weight is stored twice, or with and without 'model\.'"):
        load_pretrained(folder)


def test_a_head_beside_a_tied_embedding_must_equal_it(folder):
    """A head that differs is untied in transformers 5, whatever config.json says."""
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}))
    load_pretrained(folder)
    edit_tensors(folder, lambda tensors: tensors["lm_head.weight"].__setitem__((0, 0), 9.0))
    with pytest.raises(WeightsError, match=r"lm_head\.weight differs from the embedding, tie_word_embeddings False expected"):
        load_pretrained(folder)


def test_two_activations_of_a_gemma_that_disagree_are_refused(shared, tmp_path):
    raw = json.loads((shared / "fixtures/hf_torch/gemma/config.json").read_text())
    changed = raw | {"hidden_act": "gelu", "hidden_activation": "silu"}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(WeightsError, match=r"hidden_activation 'silu' found, one of \(None, 'gelu_pytorch_tanh'\)"):
        load_pretrained(tmp_path)


def test_damaged_weights_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(WeightsError, match=r"(model\.safetensors|flax_model\.msgpack): damaged or truncated"):
        load_pretrained(folder)


def test_damaged_flax_weights_are_named(folder, shared):
    (folder / "model.safetensors").unlink()
    flax = (shared / "fixtures/hf_flax/llama/flax_model.msgpack").read_bytes()
    (folder / "flax_model.msgpack").write_bytes(flax[:-50])
    with pytest.raises(WeightsError, match=r"(model\.safetensors|flax_model\.msgpack): damaged or truncated"):
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


@pytest.mark.parametrize("name", ["hf_torch/llama3", "hf_flax/llama", "hf_torch/gpt2"])
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


def test_new_rows_have_the_old_ones_mean_and_covariance_and_do_not_depend_on_their_number(rng):
    old = jnp.asarray(rng.normal(size=(300, 3)) @ np.array([[2, 1, 0], [0, 1, 0], [0, 0, 3]]) + [0, 5, -5], jnp.float32)
    new = np.asarray(vocabulary._append_rows(old, 20_000, jax.random.key(0))[300:], np.float64)
    exact = np.asarray(old, np.float64)
    np.testing.assert_allclose(new.mean(0), exact.mean(0), atol=1e-5)
    np.testing.assert_allclose(np.cov(new.T) / 1e-9, np.cov(exact.T, bias=True), atol=0.3)
    fewer = vocabulary._append_rows(old, 70, jax.random.key(0))[300:]
    np.testing.assert_allclose(fewer, new[:70], rtol=1e-6)


@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 2, 2)])
def test_new_rows_are_mixed_in_pieces(layout):
    mesh = make_mesh(*layout, jax.devices()[: np.prod(layout)])
    rows = jax.ShapeDtypeStruct((20_000, 8), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
    program = jax.jit(lambda rows, key: vocabulary._append_rows(rows, 4000, key)).lower(rows, jax.random.key(0)).compile()
    mixture_bytes = 4 * 20_000 * 4000  # [added, V]
    assert program.memory_analysis().temp_size_in_bytes < mixture_bytes / 4


def test_a_vocabulary_that_is_large_enough_is_kept(shared):
    model, _ = load_pretrained(shared / "fixtures/hf_torch/llama3")
    assert grow_vocabulary(model, 100, jax.random.key(0)).embedding.shape == (160, 32)


@pytest.mark.parametrize("name", ["hf_torch/llama3", "hf_flax/llama"])
def test_separate_new_rows_change_nothing_and_are_written_into_the_embedding(shared, name, tmp_path):
    expected = np.load(shared / "fixtures" / name / "expected.npz")
    ids = np.concatenate([expected["input_ids"], np.full((3, 2), 170)], axis=1)
    plain, separate = (load_pretrained(shared / "fixtures" / name)[0] for _ in range(2))
    grow_vocabulary(plain, 200, jax.random.key(0))
    grow_vocabulary(separate, 200, jax.random.key(0), train_from=150)
    np.testing.assert_allclose(separate(ids), plain(ids), atol=1e-5)
    trained = {path[-1]: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(separate, NewRows))}
    shapes = {"new_rows": (50, 32)} | ({} if name == "hf_torch/llama3" else {"new_head_rows": (50, 32)})
    assert trained == shapes and separate.embedding.shape == (150, 32)
    save_pretrained(separate, tmp_path)
    np.testing.assert_allclose(load_pretrained(tmp_path)[0](ids), plain(ids), atol=1e-5)


def test_weights_that_are_not_finite_are_named(folder):
    def change(tensors):
        tensors["model.norm.weight"] = np.full(32, np.nan, np.float32)

    edit_tensors(folder, change)
    with pytest.raises(WeightsError, match=r"model\.norm\.weight holds values that are not finite"):
        load_pretrained(folder)


def test_weights_that_overflow_in_the_model_s_type_are_named(folder):
    def change(tensors):
        tensors["model.norm.weight"] = np.full(32, 1e6, np.float32)

    edit_tensors(folder, change)
    load_pretrained(folder)
    with pytest.raises(
        WeightsError, match=r"model\.norm\.weight holds values that are not finite in float16 \(model\.param_dtype\)"
    ):
        load_pretrained(folder, param_dtype="float16")


def test_a_host_reads_the_parts_of_a_file_that_it_holds(shared):
    """A tensor is a view of the file: bytes that no device here holds are not read."""
    for _, array in stored_tensors(shared / "fixtures/hf_torch/llama3"):
        base = array
        while base.base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_file_written_tensor_by_tensor_is_the_library_s(rng, tmp_path, dtype):
    tensors = {f"x{size}": rng.normal(size=(size, 3)).astype(jnp.dtype(dtype)) for size in (1, 4, 17)}
    likes = {name: jax.ShapeDtypeStruct(values.shape, values.dtype) for name, values in tensors.items()}
    with tensor_file(tmp_path / "ours", likes) as write:
        for values in tensors.values():
            write(np.asfortranarray(values))
    found = load_file(tmp_path / "ours")
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    with pytest.raises(ValueError, match=r"x1: \w+ \(4, 3\) found"), tensor_file(tmp_path / "ours", likes) as write:
        write(tensors["x4"])
    with pytest.raises(ValueError, match=r"no values for \['x4', 'x17'\]"), tensor_file(tmp_path / "ours", likes) as write:
        write(tensors["x1"])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_weights_that_find_the_disk_full_name_the_file(tmp_path):
    (tmp_path / "model.safetensors").symlink_to("/dev/full")
    file, values = tmp_path / "model.safetensors", np.zeros(9, np.float32)
    cannot = pytest.raises(WeightsError, match=r"model\.safetensors: cannot be written: No space left on device")
    with cannot, tensor_file(file, {"x": jax.ShapeDtypeStruct((9,), np.float32)}) as write:
        write(values)


def test_opt_350m_is_refused_by_field(shared, tmp_path):
    raw = json.loads((shared / "fixtures/hf_torch/opt/config.json").read_text())
    for change, message in (
        ({"do_layer_norm_before": False}, "do_layer_norm_before False"),
        ({"word_embed_proj_dim": 16}, "word_embed_proj_dim 16 found, one of \\(None, 32\\)"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(raw | change))
        with pytest.raises(WeightsError, match=message):
            load_pretrained(tmp_path)


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"\.bin files are pickles, which are not read"):
        load_pretrained(folder)


def test_chunked_flax_arrays_are_reassembled(shared, tmp_path, monkeypatch):
    source = shared / "fixtures/hf_flax/llama"
    monkeypatch.setattr("flax.serialization.MAX_CHUNK_SIZE", 1000)
    tree = serialization.msgpack_restore((source / "flax_model.msgpack").read_bytes())
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    shutil.copyfile(source / "config.json", tmp_path / "config.json")
    ids = np.load(source / "expected.npz")["input_ids"]
    np.testing.assert_array_equal(load_pretrained(tmp_path)[0](ids), load_pretrained(source)[0](ids))


@pytest.fixture
def tied_flax(shared, tmp_path):
    """Flax's Llama, whose head is its own, with a config.json that ties it."""
    folder = tmp_path / "tied"
    shutil.copytree(shared / "fixtures/hf_flax/llama", folder)
    edit_config(folder, tie_word_embeddings=True)
    return folder


def test_flax_s_own_head_is_used_though_config_json_ties_it(tied_flax, tmp_path):
    expected = np.load(tied_flax / "expected.npz")
    ids, mask = expected["input_ids"], expected["attention_mask"]
    model, config = load_pretrained(tied_flax)
    assert not config.tied_embeddings
    np.testing.assert_allclose(np.asarray(model(ids, mask))[mask == 1], expected["logits"][mask == 1], atol=2e-4)
    save_pretrained(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["tie_word_embeddings"] is False
    np.testing.assert_array_equal(load_pretrained(tmp_path / "saved")[0](ids), model(ids))
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    theirs = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        logits = theirs(torch.tensor(ids), torch.tensor(mask)).logits.numpy()
    np.testing.assert_allclose(np.asarray(model(ids, mask))[mask == 1], logits[mask == 1], atol=2e-4)


@pytest.mark.parametrize("equal, changes", [(True, {}), (False, {"model_type": "gemma", "hidden_act": "gelu_pytorch_tanh"})])
def test_a_head_that_flax_would_not_use_is_not_used(tied_flax, equal, changes, caplog):
    edit_config(tied_flax, **changes)
    if equal:
        tree = serialization.msgpack_restore((tied_flax / "flax_model.msgpack").read_bytes())
        tree["lm_head"]["kernel"] = tree["model"]["embed_tokens"]["embedding"].T
        (tied_flax / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    assert load_pretrained(tied_flax)[1].tied_embeddings
    assert [record.message for record in caplog.records] == (
        [] if equal else [f"{tied_flax}: lm_head.weight is not used: config.json ties it to the embedding, which differs"]
    )


def test_the_head_is_compared_once_and_no_other_tensor_is_read_for_it(tied_flax, monkeypatch):
    read = []

    def watched(folder, only=None):
        for name, array in stored_tensors(folder, only):
            read.append(name)
            yield name, array

    monkeypatch.setattr(hf, "stored_tensors", watched)
    assert not any(hf.read_config(tied_flax).tied_embeddings for _ in range(3))
    assert read == ["lm_head.weight", "model.embed_tokens.weight"]
    before = (tied_flax / "flax_model.msgpack").stat()
    os.utime(tied_flax / "flax_model.msgpack", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert hf.has_flax_head(tied_flax) and len(read) == 4


def test_a_model_with_lora_is_not_written_as_if_merged(shared, tmp_path):
    model, _ = load_pretrained(shared / "fixtures/hf_torch/llama3")
    add_lora(model, LoraConfig(2, 4.0, 0.0, ("q",)), jax.random.key(0))
    with pytest.raises(WeightsError, match="merge them first"):
        save_pretrained(model, tmp_path)
