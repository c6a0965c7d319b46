import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.encoders.config import MASKED, SIZES, EncoderConfig, count_kept, patch_grid
from ecgbyte_jax.encoders.masked import MaskedAutoencoder
from ecgbyte_jax.errors import ConfigError, SettingsError
from tests.encoders.reference import (
    check_gradients,
    check_step,
    layer_norm,
    linear,
    positions,
    random_weights,
    torch,
    transformer,
    weights_of,
)

ROWS, SAMPLES = 2, 100

pytestmark = pytest.mark.usefixtures("optimised")


def make(kind: str, **more) -> tuple[MaskedAutoencoder, np.ndarray, np.ndarray]:
    """A tiny autoencoder, segments and the noise of their masks."""
    model = random_weights(lambda: MaskedAutoencoder(EncoderConfig(kind, "tiny", **more), SAMPLES, nnx.Rngs(0)))
    rng, grid = np.random.default_rng(0), model.grid
    signals = 0.2 * rng.standard_normal((ROWS, 12, SAMPLES)).astype(np.float32)
    return model, signals, rng.random((ROWS, grid.groups, grid.patches)).astype(np.float32)


def groups_of(kind: str, signal: "torch.Tensor") -> "list[list[torch.Tensor]]":
    """The patches of one segment [12, samples], group by group; spans have 4 samples: 25 of 100."""
    signal = signal / 0.2
    spans = [signal[:, first : first + 4] for first in range(0, SAMPLES, 4)]
    if kind == "mtae":
        return [[span.flatten() for span in spans]]
    if kind == "mlae":
        return [list(signal)]
    return [[span[lead] for span in spans] for lead in range(12)]


def reference(w: dict, kind: str, signals: np.ndarray, noise: np.ndarray | None) -> "tuple[torch.Tensor, torch.Tensor]":
    """(features [rows, width], mean error of the hidden patches) patch by patch; without noise, no patch is hidden."""
    (width, layers, heads), (decoder_width, *decoder) = ((s.width, s.layers, s.heads) for s in SIZES["tiny"])
    features, errors = [], []
    for row, signal in enumerate(torch.tensor(signals)):
        groups = groups_of(kind, signal)
        tokens, seen, starts = [], [], []
        for number, patches in enumerate(groups):
            places = positions(len(patches), width)
            keep = range(len(patches))
            if noise is not None:
                keep = np.argsort(noise[row, number])[: {"mtae": 6, "mlae": 3, "st_mem": 6}[kind]].tolist()
            embedded = [
                layer_norm(w, "token_norm", linear(w, "patch_to_token", layer_norm(w, "patch_norm", patches[i]))) + places[i]
                for i in keep
            ]
            group = [w["special"], *embedded] + ([w["special"]] if kind == "st_mem" else [])
            group = [token + (w["lead_embedding"][number] if kind == "st_mem" else 0) for token in group]
            starts.append(len(tokens))
            tokens += group
            seen.append(list(keep))
        encoded = transformer(w, "encoder", torch.stack(tokens)[None], layers, heads)[0]
        features += [torch.cat([encoded[s + 1 : s + 1 + len(k)] for s, k in zip(starts, seen)]).mean(0)]
        for start, keep, patches in zip(starts, seen, groups):
            latents = linear(w, "to_decoder", encoded[start : start + 1 + len(keep) + (kind == "st_mem")])
            places = positions(len(patches), decoder_width)
            filled = [w["mask_token"]] * len(patches)
            for latent, place in zip(latents[1:], keep):
                filled[place] = latent
            filled = [token + place for token, place in zip(filled, places)]
            line = torch.stack([latents[0], *filled, *latents[1 + len(keep) :]])
            restored = linear(w, "to_patch", transformer(w, "decoder", line[None], *decoder)[0])[1 : 1 + len(patches)]
            errors += [((restored[i] - patches[i]) ** 2).mean() for i in range(len(patches)) if i not in keep]
    return torch.stack(features), torch.stack(errors).mean() if errors else torch.tensor(0.0)


@pytest.mark.parametrize("kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("mtae", "mlae")), "st_mem"])
def test_features_loss_gradients_and_a_step_are_those_of_pytorch(kind):
    model, signals, noise = make(kind)
    graphdef, params = nnx.split(model, nnx.Param)
    w = weights_of(params)
    with torch.no_grad():
        expected, _ = reference(w, kind, signals, None)
    np.testing.assert_allclose(nnx.jit(MaskedAutoencoder.features)(model, signals), expected.numpy(), atol=1e-5)

    def loss_of(params: nnx.State) -> jax.Array:
        return jnp.mean(nnx.merge(graphdef, params).errors(signals, noise))

    loss, gradients = jax.jit(jax.value_and_grad(loss_of))(params)
    _, theirs = reference(w, kind, signals, noise)
    theirs.backward()
    assert float(loss) == pytest.approx(theirs.item(), rel=1e-5)
    check_gradients(gradients, w)
    check_step(params, gradients, w)


@pytest.mark.parametrize("kind", MASKED)
def test_hidden_patches_do_not_change_what_the_encoder_sees(kind):
    model, signals, noise = make(kind)
    order = np.argsort(noise, axis=-1)
    hidden = np.argsort(order, axis=-1) >= model.kept  # [B, G, N]
    other = signals.copy()
    if kind == "mlae":
        other[hidden[:, 0]] += 1
    else:
        spans = other.reshape(ROWS, 12, 25, 4)
        spans[np.broadcast_to(hidden, (ROWS, 12, 25))] += 1
    encode = nnx.jit(MaskedAutoencoder.encode)
    assert np.array_equal(encode(model, signals, order), encode(model, other, order))
    assert not np.allclose(encode(model, signals), encode(model, other))


@pytest.mark.parametrize(("samples", "spans"), [(500, 25), (100, 25), (1250, 25), (2500, 25), (512, 32), (96, 32)])
def test_a_segment_has_the_number_of_spans_nearest_to_32(samples, spans):
    assert patch_grid(EncoderConfig("st_mem"), samples).patches == spans


def test_a_quarter_of_the_patches_is_kept_rounded_down():
    kept = {kind: count_kept(patch_grid(EncoderConfig(kind), 500), 0.75) for kind in MASKED}
    assert kept == {"mtae": 6, "mlae": 3, "st_mem": 6}


@pytest.mark.parametrize(("samples", "patch"), [(97, 0), (500, 7), (500, 500)])
def test_spans_that_do_not_fill_a_segment_are_refused(samples, patch):
    with pytest.raises(ConfigError, match=str(samples)):
        patch_grid(EncoderConfig("mtae", patch=patch), samples)


def test_a_span_is_refused_where_patches_are_leads():
    with pytest.raises(SettingsError, match="patch: 20 found with kind 'mlae'"):
        EncoderConfig("mlae", patch=20)


def test_published_scaling_loses_the_amplitude_and_mv_keep_it():
    for published in (True, False):
        model, signals, _ = make("st_mem", published_scaling=published)
        cut = np.array(model.cut(signals)), np.array(model.cut(3 * signals))
        assert np.allclose(*cut, atol=1e-5) == published
