"""Maps from signals to vectors in folders: read back, damaged, and under other settings."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from ecgbyte_jax.encoders.config import EcgInputConfig, EncoderConfig
from ecgbyte_jax.encoders.ecg_input import make_ecg_input
from ecgbyte_jax.encoders.stored import describe, differences, load_ecg_input, read_description, save_ecg_input
from ecgbyte_jax.errors import WeightsError

SAMPLES, WIDTH = 100, 24
QUERY = EcgInputConfig("encoder", 3, "query"), EncoderConfig("merl", "tiny")
PATCHES = EcgInputConfig("elf_patch", 5), EncoderConfig()


def save(folder: Path, config: EcgInputConfig, encoder: EncoderConfig):
    ecg_input = make_ecg_input(config, encoder, SAMPLES, WIDTH, nnx.Rngs(1))
    if config.kind == "encoder":  # statistics that a training has moved
        ecg_input.encoder.resnet.stem_norm.mean[...] += 0.5
    save_ecg_input(ecg_input, folder, describe(config, encoder, SAMPLES, 50.0), WIDTH)
    return ecg_input


def test_a_stored_map_says_how_the_signals_are_scaled(tmp_path):
    save(tmp_path, QUERY[0], EncoderConfig("merl", "tiny", published_scaling=True))
    assert json.loads((tmp_path / "config.json").read_text())["scaling"] == "0..1000 over each segment"


@pytest.mark.parametrize("config, encoder", [QUERY, PATCHES], ids=["query", "patches"])
def test_a_stored_map_gives_the_same_vectors(tmp_path, config, encoder):
    written, read = save(tmp_path / "map", config, encoder), load_ecg_input(tmp_path / "map")
    for ours, theirs in zip(*(nnx.to_flat_state(nnx.state(part)) for part in (written, read)), strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1][...], theirs[1][...])
    assert type(read) is type(written)
    assert read_description(tmp_path / "map") == describe(config, encoder, SAMPLES, 50.0) | {"width": WIDTH}


def test_every_setting_that_vectors_depend_on_is_compared():
    ours = describe(*QUERY, SAMPLES, 50.0)
    others = [
        (EcgInputConfig("encoder", 4, "query"), QUERY[1], SAMPLES, 50.0),
        (EcgInputConfig("encoder", 3, "mlp"), QUERY[1], SAMPLES, 50.0),
        (QUERY[0], EncoderConfig("merl", "resnet18"), SAMPLES, 50.0),
        (QUERY[0], EncoderConfig("merl", "tiny", published_scaling=True), SAMPLES, 50.0),
        (*QUERY, 200, 50.0),
        (*QUERY, SAMPLES, 250.0),
    ]
    found = [differences(describe(*other), ours) for other in others]
    assert found == [
        ["ecg_input.vectors 4 found, 3 in the settings"],
        ["ecg_input.connector 'mlp' found, 'query' in the settings"],
        ["encoder.size 'resnet18' found, 'tiny' in the settings"],
        ["encoder.published_scaling True found, False in the settings"],
        ["signal.segment_length 200 found, 100 in the settings"],
        ["signal.target_rate 250.0 found, 50.0 in the settings"],
    ]
    assert differences(describe(*QUERY, SAMPLES, 50.0) | {"width": 7}, ours) == []
    assert "ecg_input.kind 'elf_patch' found, 'encoder' in the settings" in differences(describe(*PATCHES, SAMPLES, 50.0), ours)


def spoil_config(change) -> None:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(change(content)))

    return spoil


def spoil_weights(change):
    def spoil(folder: Path) -> None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: damaged, or not what --stage=export writes"),
        (spoil_config(lambda c: [c]), r"config\.json: damaged, or not what --stage=export writes"),
        (spoil_config(lambda c: c | {"kind": "other"}), r"config\.json: no map that can be made: kind"),
        (
            spoil_config(lambda c: c | {"vectors": 4}),
            r"model\.safetensors: the weights do not fit config\.json: map\.kernel is",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), r"model\.safetensors: missing or damaged"),
        (spoil_weights(lambda w: {"map.bias": w["map.bias"]}), "no map.kernel"),
        (spoil_weights(lambda w: w | {"more": w["map.bias"]}), "no place for more"),
        (spoil_weights(lambda w: w | {"map.bias": w["map.bias"] * np.nan}), "map.bias holds values that are not finite"),
        (spoil_weights(lambda w: {k: v.astype(np.float64) for k, v in w.items()}), r"map\.bias is float64 .* float32"),
    ],
)
def test_a_damaged_map_is_refused_by_the_name_of_its_file(tmp_path, spoil, message):
    save(tmp_path / "map", *PATCHES)
    spoil(tmp_path / "map")
    with pytest.raises(WeightsError, match=message):
        load_ecg_input(tmp_path / "map")
