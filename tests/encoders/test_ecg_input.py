import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.encoders.config import EcgInputConfig, EncoderConfig, check_vectors
from ecgbyte_jax.encoders.ecg_input import make_ecg_input
from ecgbyte_jax.encoders.masked import MaskedAutoencoder
from ecgbyte_jax.errors import ConfigError, SettingsError
from tests.encoders.reference import F, check_gradients, check_step, layer_norm, linear, random_weights, torch, weights_of

ROWS, SAMPLES, WIDTH = 2, 100, 24
ENCODER = EncoderConfig("mtae", "tiny")  # 25 spans, 64 wide
INPUTS = {
    "elf_base": EcgInputConfig("elf_base"),
    "elf_patch": EcgInputConfig("elf_patch", 5),
    "elf_conv": EcgInputConfig("elf_conv"),
    "linear": EcgInputConfig("encoder", 1, "linear", train_encoder=True),
    "mlp": EcgInputConfig("encoder", 5, "mlp", train_encoder=True),
    "query": EcgInputConfig("encoder", 3, "query", train_encoder=True),
}


def reference(w: dict, name: str, signals: np.ndarray, features: "torch.Tensor | None") -> "torch.Tensor":
    """The vectors of each segment, one after the other; features: [rows, 25, 64] of the encoder."""
    rows = []
    for row, signal in enumerate(torch.tensor(signals) / 0.2):
        if name == "elf_base":
            vectors = [linear(w, "map", signal.flatten())]
        elif name == "elf_patch":
            vectors = [linear(w, "map", signal[:, first : first + 20].flatten()) for first in range(0, SAMPLES, 20)]
        elif name == "elf_conv":
            x = signal[None]
            for layer, (span, n_in) in enumerate(((3, 12), (7, 64))):
                kernel = w[f"filters/{layer}/kernel"].reshape(span, n_in, -1).permute(2, 1, 0)
                x = F.relu(F.conv1d(x, kernel, w[f"filters/{layer}/bias"], padding=span // 2))
            vectors = [linear(w, "map", x[0].mean(1))]
        elif name == "query":
            x = layer_norm(w, "connector/norm", features[row])
            q = linear(w, "connector/q", w["connector/queries"])
            k, v = (linear(w, f"connector/{part}", x) for part in "kv")
            heads = [torch.softmax(q[:, c] @ k[:, c].T / 4, -1) @ v[:, c] for c in (slice(i, i + 16) for i in range(0, 64, 16))]
            vectors = linear(w, "connector/map", torch.cat(heads, -1))
        else:
            means = features[row].split(25 if name == "linear" else 5)
            vectors = [mean.mean(0) for mean in means]
            if name == "mlp":
                vectors = [F.gelu(linear(w, "connector/up", mean)) for mean in vectors]
            vectors = [linear(w, "connector/map", mean) for mean in vectors]
        rows.append(torch.stack([*vectors]))
    return torch.stack(rows)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("elf_base", "elf_conv", "linear", "mlp")]


@pytest.mark.parametrize("name", ["elf_patch", "query", *SLOW])
def test_vectors_gradients_and_a_step_are_those_of_a_plain_reference(name):
    model = random_weights(lambda: make_ecg_input(INPUTS[name], ENCODER, SAMPLES, WIDTH, nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    signals = 0.2 * rng.standard_normal((ROWS, 12, SAMPLES)).astype(np.float32)
    graphdef, state = nnx.split(model)
    targets = rng.standard_normal((ROWS, INPUTS[name].vectors, WIDTH)).astype(np.float32)
    if INPUTS[name].kind == "encoder":  # whose own parity is in test_masked.py: here its features are given
        features = jax.jit(lambda state: nnx.merge(graphdef, state).encoder.tokens(signals))(state)
        state = nnx.split(model.connector)[1]
        call, prefix = (lambda state: nnx.merge(nnx.graphdef(model.connector), state)(features)), "connector/"
    else:
        features, call, prefix = None, (lambda state: nnx.merge(graphdef, state)(signals)), ""

    def loss(state: nnx.State) -> jax.Array:
        return jnp.mean((call(state) - targets) ** 2)

    w = {prefix + path: weight for path, weight in weights_of(state).items()}
    given = None if features is None else torch.tensor(np.array(features))
    expected = reference(w, name, signals, given)
    np.testing.assert_allclose(jax.jit(call)(state), expected.detach(), atol=2e-5)
    ((expected - torch.tensor(targets)) ** 2).mean().backward()
    gradients = jax.jit(jax.grad(loss))(state)
    w = {path.removeprefix(prefix): weight for path, weight in w.items()}
    check_gradients(gradients, w)
    check_step(state, gradients, w)


def test_an_encoder_s_features_are_its_connector_s_input():
    model = random_weights(lambda: make_ecg_input(INPUTS["linear"], ENCODER, SAMPLES, WIDTH, nnx.Rngs(0)))
    signals = np.random.default_rng(0).standard_normal((ROWS, 12, SAMPLES)).astype(np.float32)
    encoder = MaskedAutoencoder(ENCODER, SAMPLES, nnx.Rngs(0))
    nnx.update(encoder, nnx.state(model.encoder))
    features = jax.jit(lambda state: nnx.merge(nnx.graphdef(encoder), state).features(signals))(nnx.state(encoder))
    vectors = jax.jit(lambda state: nnx.merge(nnx.graphdef(model), state)(signals))(nnx.state(model))
    np.testing.assert_allclose(vectors[:, 0], model.connector.map(features), atol=1e-5)


@pytest.mark.parametrize("name", ["query", "elf_patch", *SLOW])
def test_the_arithmetic_of_an_input_is_about_what_the_compiler_counts(name):
    model = random_weights(lambda: make_ecg_input(INPUTS[name], ENCODER, SAMPLES, WIDTH, nnx.Rngs(0)))
    segment = jax.ShapeDtypeStruct((1, 12, SAMPLES), jnp.float32)
    counted = jax.jit(lambda signals: model(signals)).lower(segment).compile().cost_analysis()["flops"]
    assert 0.8 * counted < model.flops() < 1.1 * counted  # norms, activations and means are not counted


@pytest.mark.parametrize(
    "config, message",
    [
        (EcgInputConfig("elf_patch", 7), r"ecg_input\.vectors: 7 found, a divisor of signal\.segment_length = 100 expected"),
        (
            EcgInputConfig("encoder", 4),
            r"ecg_input\.vectors: 4 found, a divisor of 25 expected, the features of encoder\.kind 'm",
        ),
    ],
)
def test_vectors_that_cannot_be_made_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        check_vectors(config, ENCODER, SAMPLES)
    check_vectors(EcgInputConfig("encoder", 4, "query"), ENCODER, SAMPLES)


def test_an_input_that_makes_one_vector_is_not_asked_for_more():
    with pytest.raises(SettingsError, match=r"vectors: 2 found with kind 'elf_conv', which makes one; 1 expected"):
        EcgInputConfig("elf_conv", 2)
