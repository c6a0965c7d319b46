"""How much a step keeps: the least recomputation that fits."""

from dataclasses import replace

import jax
import pytest

from ecgbyte_jax.encoders.config import SIZES, EcgInputConfig, EncoderConfig
from ecgbyte_jax.model.config import KEPT, DecoderConfig
from ecgbyte_jax.model.sharding import make_mesh
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train import memory
from ecgbyte_jax.train.chips import CHIPS, USABLE, chip_of
from ecgbyte_jax.train.memory import kept_bytes, rows_at_once, tokens_at_once, with_remat
from ecgbyte_jax.train.vectors import activation_bytes

LLAMA_1B = DecoderConfig(
    vocab_size=128_256, width=2048, layers=16, heads=32, kv_heads=8, head_dim=64, mlp_width=8192, max_positions=2048,
    rope_theta=5e5, dtype="bfloat16",
)  # fmt: skip


def test_everything_is_kept_on_cpus():
    assert with_remat(Settings(), make_mesh(1, 1, 1, jax.devices()[:1]), 500, 300).model.remat == ""


def test_a_given_value_is_left():
    settings = replace(Settings(), model=replace(Settings().model, remat="attention"))
    assert with_remat(settings, make_mesh(1, 1, 1, jax.devices()[:1]), 500, 300) == settings


def test_the_bytes_of_a_token_by_hand():
    again = 2 * (12 * 2048 + 9 * 8192)
    assert kept_bytes(LLAMA_1B, "inputs", 1, "gpu") == 16 * 2 * 2048 + again
    assert kept_bytes(LLAMA_1B, "attention", 1, "gpu") == 16 * 2 * (2048 + 64 * 80 + 2048) + again
    assert kept_bytes(LLAMA_1B, "products", 1, "gpu") == 16 * 2 * (2048 + 64 * 80 + 2048 + 2 * 8192) + again
    assert kept_bytes(LLAMA_1B, "attention", 1, "tpu") == 16 * 2 * (2048 + 128 * 80 + 2048) + again
    assert kept_bytes(LLAMA_1B, "products", 4, "gpu") < kept_bytes(LLAMA_1B, "products", 1, "gpu")


@pytest.mark.parametrize(("room", "expected"), [(1e12, "products"), (2.2e9, "attention"), (1.9e9, "inputs"), (1e6, "inputs")])
def test_the_first_that_fits_is_chosen(monkeypatch, room, expected):
    settings = Settings()
    sizes = {"width": 64, "layers": 40, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp_width": 2048}
    settings = replace(settings, model=replace(settings.model, **sizes), train=replace(settings.train, batch_size=4))
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    monkeypatch.setattr(memory, "_platform", lambda mesh: "gpu")
    monkeypatch.setattr(memory, "memory_of", lambda mesh: room)
    assert tokens_at_once(settings, mesh) == 4 * 1024
    assert with_remat(settings, mesh, 500, 300).model.remat == expected


def test_a_trained_encoder_takes_room_from_what_is_kept(monkeypatch):
    settings, mesh = Settings(), make_mesh(1, 1, 1, jax.devices()[:1])
    settings = replace(settings, model=replace(settings.model, width=64, layers=1, mlp_width=64))
    monkeypatch.setattr(memory, "_platform", lambda mesh: "gpu")
    monkeypatch.setattr(memory, "kept_bytes", lambda config, remat, *_: 1e6 if remat == "products" else 1)
    left = 5e8  # bytes for parameters and moments, of which an encoder of 85 M takes 1e9
    room = (1.2 * 1e6 * tokens_at_once(settings, mesh) + 2**30 + left) / USABLE
    monkeypatch.setattr(memory, "memory_of", lambda mesh: room)
    read = EcgInputConfig("encoder", train_encoder=True)
    assert with_remat(settings, mesh, 500, 300).model.remat == "products"
    assert with_remat(replace(settings, ecg_input=read), mesh, 500, 300).model.remat == "attention"


def test_what_a_trained_encoder_keeps_of_every_ecg_takes_room_too(monkeypatch):
    settings, mesh = Settings(), make_mesh(1, 1, 1, jax.devices()[:1])
    settings = replace(settings, model=replace(settings.model, width=64, layers=1, mlp_width=64))
    frozen, trained = (
        replace(settings, ecg_input=EcgInputConfig("encoder", train_encoder=train), encoder=EncoderConfig("mlae", "tiny"))
        for train in (False, True)
    )
    size, tokens = SIZES["tiny"][0], 13  # 12 leads and a class token, in 2 blocks
    activations = activation_bytes(trained, 64)
    assert activations > 4 * size.layers * tokens * (6 * size.width + 2 * size.mlp_width)  # one copy of each product's inputs
    assert activation_bytes(frozen, 64) <= 4 * 12 * size.width < activations and activation_bytes(settings, 64) == 0
    monkeypatch.setattr(memory, "_platform", lambda mesh: "gpu")
    monkeypatch.setattr(memory, "kept_bytes", lambda config, remat, *_: 1e6 if remat == "products" else 1)
    ecgs, rows = 100, rows_at_once(settings, mesh)
    left = 2e7 + rows * ecgs * activations / 2
    room = (1.2 * 1e6 * tokens_at_once(settings, mesh) + 2**30 + left) / USABLE
    monkeypatch.setattr(memory, "memory_of", lambda mesh: room)
    assert with_remat(frozen, mesh, 500, 300, ecgs).model.remat == "products"
    assert with_remat(trained, mesh, 500, 300, ecgs // 4).model.remat == "products"
    assert with_remat(trained, mesh, 500, 300, ecgs).model.remat == "attention"


def test_every_value_of_remat_keeps_less_than_the_one_before():
    sizes = [kept_bytes(LLAMA_1B, remat, 1, "gpu") for remat in KEPT]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA A100-SXM4-80GB", "a100-80"),
     ("NVIDIA A100 80GB PCIe", "a100-40"), ("TPU v5 lite", "v5e"), ("TPU v5p", "v5p")],
)  # fmt: skip
def test_a_chip_is_known_by_its_kind(kind, name):
    class Device:
        device_kind = kind

    assert chip_of(Device()) == CHIPS[name]


def test_a_cpu_is_not_in_the_table():
    assert chip_of(jax.devices()[0]) is None
