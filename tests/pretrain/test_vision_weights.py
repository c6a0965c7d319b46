"""ViT and CLIP with random weights, as transformers writes them and computes with them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from ecgbyte_jax.encoders.config import CLIPS, VITS, EncoderConfig, Stack
from ecgbyte_jax.encoders.encoder import make_encoder
from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.sharding import make_mesh
from ecgbyte_jax.pretrain.vision_weights import with_weights
from tests.encoders.reference import check_gradients, check_step, random_weights, torch, weights_of
from tests.encoders.test_picture import FILTERS, Image

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("optimised")

ROWS, SAMPLES, WORDS, END = 3, 100, 50, 41
CLASSES = {"vit": "ViTForMaskedImageModeling", "clip": "CLIPModel"}


def sizes(stack: Stack) -> dict:
    return {"hidden_size": stack.width, "num_hidden_layers": stack.layers, "num_attention_heads": stack.heads,
            "intermediate_size": stack.mlp_width}  # fmt: skip


def make_theirs(kind: str) -> "torch.nn.Module":
    if kind == "vit":
        model = transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**sizes(VITS["tiny"].stack)))
    else:
        clip = CLIPS["tiny"]
        text = sizes(clip.text) | {"vocab_size": WORDS, "eos_token_id": END, "bos_token_id": 40}
        config = {"text_config": text, "vision_config": sizes(clip.picture.stack), "projection_dim": clip.shared}
        model = transformers.CLIPModel(transformers.CLIPConfig(**config))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim in (2, 4) and "embedding" not in name else 0.1
            weight.add_(scale * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module", params=["vit", "clip"])
def saved(request, tmp_path_factory) -> tuple[str, "torch.nn.Module", Path]:
    """(kind, model, its folder)."""
    folder, model = tmp_path_factory.mktemp(request.param), make_theirs(request.param)
    model.save_pretrained(folder)
    return request.param, model, folder


def read(kind: str, folder: Path) -> tuple[nnx.GraphDef, nnx.State]:
    """The encoder with a folder's weights."""
    config = EncoderConfig(kind, "tiny", weights=str(folder))
    graphdef, params = nnx.split(random_weights(lambda: make_encoder(config, SAMPLES, nnx.Rngs(0), WORDS)))
    return graphdef, with_weights(config, {"encoder": params}, make_mesh(1, 1, 1, jax.devices()[:1]))["encoder"]


def pixels(kind: str, signals: np.ndarray) -> "torch.Tensor":
    vision = VITS["tiny"] if kind == "vit" else CLIPS["tiny"].picture
    images = [np.asarray(Image.fromarray(x / 3 + 0.5).resize((224, 224), FILTERS[vision.resampling])) for x in signals]
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (vision.mean, vision.deviation))
    return (torch.tensor(np.stack(images))[:, None] - mean) / deviation


def test_outputs_loss_gradients_and_a_step_are_those_of_transformers(saved, tmp_path, rng):
    kind, theirs, folder = saved
    graphdef, params = read(kind, folder)
    signals = (0.3 * rng.standard_normal((ROWS, 12, SAMPLES))).astype(np.float32)
    if kind == "vit":
        given = rng.random((ROWS, 196)).astype(np.float32)
        asked = {"bool_masked_pos": torch.tensor(given < 0.75)}
        with torch.no_grad():
            hidden = theirs.vit(pixels(kind, signals)).last_hidden_state[:, 1:]
        expected = hidden, hidden.mean(1)
    else:
        given = np.full((ROWS, 77), -1, np.int32)
        for row, length in zip(given, (5, 77, 20)):
            row[:length] = [40, *rng.integers(0, 40, length - 2), END]
        asked = {"input_ids": torch.tensor(np.where(given < 0, END, given)).long(), "return_loss": True}
        with torch.no_grad():
            seen = theirs.vision_model(pixels(kind, signals), output_hidden_states=True)
            expected = seen.hidden_states[-2][:, 1:], theirs.get_image_features(pixels(kind, signals)).pooler_output
    for ours, hidden in zip(nnx.jit(lambda e: (e.tokens(signals), e.features(signals)))(nnx.merge(graphdef, params)), expected):
        np.testing.assert_allclose(ours, hidden.numpy(), atol=1e-5 * float(hidden.abs().max()))

    loss, gradients = jax.jit(jax.value_and_grad(lambda params: nnx.merge(graphdef, params).loss(signals, given)))(params)
    answer = theirs(pixel_values=pixels(kind, signals), **asked)
    theirs.zero_grad()
    answer.loss.backward()
    assert float(loss) == pytest.approx(answer.loss.item(), rel=1e-5)
    held = make_theirs(kind)
    with torch.no_grad():
        for to, of in zip(held.parameters(), theirs.parameters()):
            to.copy_(of.grad)
    held.save_pretrained(tmp_path)  # gradients by the names of weights
    w = weights_of(params)
    for name, gradient in weights_of(read(kind, tmp_path)[1]).items():
        w[name].grad = gradient.detach()
    check_gradients(gradients, w)
    check_step(params, gradients, w)


def test_a_folder_for_other_uses_gives_what_it_has_and_others_are_refused_in_one_line(saved, tmp_path):
    kind, _, folder = saved
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())

    def write(tensors: dict, **fields) -> None:
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config | fields))

    def refused(message: str) -> None:
        with pytest.raises(WeightsError, match=message) as caught:
            read(kind, tmp_path)
        assert str(caught.value).startswith("encoder.weights: ") and "\n" not in str(caught.value)

    norm = {"vit": "vit.layernorm.bias", "clip": "vision_model.pre_layrnorm.bias"}[kind]
    write({name: tensor for name, tensor in tensors.items() if name != norm})
    refused(rf"the weights are not those of kind '{kind}', size 'tiny': no tensor for {norm.removeprefix('vit.')}$")
    write(tensors | {norm: tensors[norm][:-1]})
    refused(rf"{norm} has shape \(63,\), 64 values expected$")
    write(tensors | {norm: np.full(64, np.nan, np.float32)})
    refused(rf"{norm} holds values that are not finite$")
    write(tensors | {"adapter.weight": tensors[norm]})
    refused("no place for adapter.weight$")
    write(tensors, model_type="bert")
    refused(rf"config\.json: model_type 'bert' found, one of \('{kind}',\) expected$")
    if kind == "vit":
        write(tensors, hidden_size=768)
        refused(r"config\.json: hidden_size 768 found, one of \(64,\) expected$")
        backbone = {n.removeprefix("vit."): t for n, t in tensors.items() if "decoder" not in n and "mask_token" not in n}
        write(backbone | {"pooler.dense.bias": tensors[norm]})
        whole, part = (weights_of(read(kind, place)[1]) for place in (folder, tmp_path))
        assert {name for name in whole if not torch.equal(whole[name], part[name])} == {
            "mask_token", "to_patch/kernel", "to_patch/bias"
        }  # fmt: skip
    else:
        write(tensors, text_config=config["text_config"] | {"hidden_act": "gelu"})
        refused(r"hidden_act 'gelu' found, one of \('quick_gelu',\) expected$")
    (tmp_path / "config.json").unlink()
    refused(r"config\.json: No such file or directory; a Hugging Face folder of a (CLIP|ViT) expected$")


@pytest.mark.slow
def test_what_the_second_stage_keeps_gives_the_same_tokens_and_its_arithmetic_is_what_the_compiler_counts(saved):
    kind, _, folder = saved
    graphdef, params = read(kind, folder)
    encoder, kept = (nnx.merge(graphdef, params, copy=True) for _ in range(2))
    kept.drop_objective()
    signals = np.random.default_rng(0).standard_normal((1, 12, SAMPLES)).astype(np.float32)
    compiled = jax.jit(lambda signals: kept.tokens(signals)).lower(signals).compile()
    np.testing.assert_allclose(compiled(signals), encoder.tokens(signals), atol=1e-5)
    counted = compiled.cost_analysis()["flops"]
    assert 0.8 * counted < kept.flops() == encoder.flops() < 1.1 * counted
    slope = jax.jit(jax.grad(lambda state: nnx.merge(nnx.graphdef(kept), state).tokens(signals).std()))
    gradients = slope(nnx.state(kept))
    names = {name for name, leaf in weights_of(gradients).items() if not leaf.any() and "/k/bias" not in name}
    assert not names  # nothing that no token depends on is kept
