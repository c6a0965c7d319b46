import jax
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.encoders.config import RESNETS, SHARED_WIDTH, EncoderConfig
from ecgbyte_jax.encoders.merl import Merl, contrast
from ecgbyte_jax.encoders.resnet import ResNet
from ecgbyte_jax.errors import SettingsError
from ecgbyte_jax.model.sharding import batch_sharding, make_mesh
from tests.encoders.reference import F, check_gradients, check_step, linear, random_weights, torch, weights_of

ROWS, SAMPLES, TEXT_WIDTH = 4, 72, 40

pytestmark = pytest.mark.usefixtures("optimised")


class Normed(torch.nn.Module):
    """A convolution and its batch norm."""

    def __init__(self, n_in, n_out, size, stride=1):
        super().__init__()
        self.convolution = torch.nn.Conv1d(n_in, n_out, size, stride, size // 2, bias=False)
        self.norm = torch.nn.BatchNorm1d(n_out)

    def forward(self, x):
        return self.norm(self.convolution(x))


class Residual(torch.nn.Module):
    def __init__(self, n_in, width, stride, bottleneck):
        super().__init__()
        n_out = 4 * width if bottleneck else width
        parts = [Normed(n_in, width, 3, stride), Normed(width, n_out, 3)]
        if bottleneck:
            parts = [Normed(n_in, width, 1), Normed(width, width, 3, stride), Normed(width, n_out, 1)]
        self.parts = torch.nn.ModuleList(parts)
        self.shortcut = Normed(n_in, n_out, 1, stride) if stride > 1 or n_in != n_out else torch.nn.Identity()

    def forward(self, x):
        y = x
        for part in self.parts[:-1]:
            y = part(y).relu()
        return (self.parts[-1](y) + self.shortcut(x)).relu()


def torch_resnet(config) -> "torch.nn.Sequential":
    layers, n_in = [Normed(12, config.width, 7, 2), torch.nn.ReLU()], config.width
    for stage, count in enumerate(config.blocks):
        width = config.width * 2**stage
        for number in range(count):
            layers.append(Residual(n_in, width, 2 if stage > 0 and number == 0 else 1, config.bottleneck))
            n_in = 4 * width if config.bottleneck else width
    return torch.nn.Sequential(*layers)


def copied(resnet: ResNet) -> "tuple[torch.nn.Sequential, dict]":
    """(the same in PyTorch, its weights by the paths in ours)."""
    theirs, state = torch_resnet(resnet.config), nnx.state(resnet)
    named = {}

    def take(module: Normed, convolution: str, norm: str) -> None:
        named.update({f"{convolution}/kernel": module.convolution.weight, f"{norm}/scale": module.norm.weight})
        named.update({f"{norm}/bias": module.norm.bias, f"{norm}/mean": module.norm.running_mean})
        named[f"{norm}/variance"] = module.norm.running_var

    take(theirs[0], "stem", "stem_norm")
    for number, block in enumerate(theirs[2:]):
        for part, normed in enumerate(block.parts):
            take(normed, f"blocks/{number}/convolutions/{part}", f"blocks/{number}/norms/{part}")
        if isinstance(block.shortcut, Normed):
            take(block.shortcut, f"blocks/{number}/shortcut", f"blocks/{number}/shortcut_norm")
    ours = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    assert ours.keys() == named.keys()
    with torch.no_grad():
        for name, tensor in named.items():
            tensor.copy_(torch.tensor(np.array(ours[name][...])))
    return theirs, named


def torch_contrast(left, right):
    scores = F.normalize(left, dim=1) @ F.normalize(right, dim=1).T / 0.07
    own = torch.arange(len(scores))
    return F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments, text features and the noise of the dropout."""
    signals = rng.standard_normal((ROWS, 12, SAMPLES)).astype(np.float32)
    texts = rng.standard_normal((ROWS, TEXT_WIDTH)).astype(np.float32)
    return signals, texts, rng.random((2, ROWS, SHARED_WIDTH)).astype(np.float32)


def torch_loss(w: dict, x: "torch.Tensor", text: np.ndarray, noise: np.ndarray | None) -> "torch.Tensor":
    """The sum of both contrasts, of a ResNet's channels x [rows, channels, places]; without noise, nothing is dropped."""
    tokens = torch.cat([w["pool/token"].expand(ROWS, 1, -1), linear(w, "to_shared", x.transpose(1, 2))], 1)
    tokens = (tokens + w["pool/positions"]).transpose(0, 1)
    names = [f"pool/attention/{part}" for part in "qkvo"]
    kernels, biases = [w[f"{name}/kernel"].T for name in names], [w[f"{name}/bias"] for name in names]
    ecg, _ = F.multi_head_attention_forward(
        tokens[:1], tokens, tokens, 256, 4, torch.cat(kernels[:3]), torch.cat(biases[:3]), None, None, False, 0.0,
        kernels[3], biases[3], need_weights=False,
    )  # fmt: skip
    views = [F.linear(x.mean(2), w[f"views/{n}/kernel"].T) for n in range(2)]
    if noise is not None:
        views = [view * torch.tensor(drawn >= 0.1) / 0.9 for view, drawn in zip(views, noise)]
    embedded = linear(w, "text_out", F.gelu(linear(w, "text_in", torch.tensor(text))))
    return torch_contrast(ecg[0], embedded) + torch_contrast(*views)


@pytest.mark.slow
@pytest.mark.parametrize("published", [False, True])
def test_losses_gradients_statistics_and_a_step_are_those_of_pytorch(published, rng):
    config = EncoderConfig("merl", "tiny", published_scaling=published)
    model = random_weights(lambda: Merl(config, SAMPLES, TEXT_WIDTH, nnx.Rngs(0)))
    signals, text, noise = draw(rng)
    resnet, resnet_weights = copied(model.resnet)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    w = weights_of(params)
    w |= {f"resnet/{name}": weight for name, weight in resnet_weights.items() if weight.requires_grad}

    x = torch.tensor(signals)
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    x = 1000 * (x - low) / (high - low + 1e-6) if published else x / 0.2
    with torch.no_grad():
        trained = copied(model.resnet)[0].eval()(x)
    features, evaluated = nnx.jit(lambda model: (model.features(signals), model.loss(signals, text)))(model)
    expected = trained.mean(2).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-5 * np.abs(expected).max())
    assert float(evaluated) == pytest.approx(torch_loss(w, trained, text, None).item(), rel=1e-5)
    theirs = torch_loss(w, resnet(x), text, noise)
    theirs.backward()

    def loss_of(params: nnx.State, stats: nnx.State) -> tuple[jax.Array, nnx.State]:
        merged = nnx.merge(graphdef, params, stats, copy=True)
        return merged.loss(signals, text, noise), nnx.state(merged, nnx.BatchStat)

    (loss, moved), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params, stats)
    assert float(loss) == pytest.approx(theirs.item(), rel=1e-5)
    for path, leaf in nnx.to_flat_state(moved["resnet"]):
        theirs = resnet_weights["/".join(map(str, path))].numpy()
        np.testing.assert_allclose(np.array(leaf[...]), theirs, rtol=1e-5, atol=1e-5, err_msg=str(path))
    check_gradients(gradients, w)
    if not published:  # Adam's first step divides a gradient by itself, and one of these is 0 up to rounding
        check_step(params, gradients, w)


@pytest.mark.parametrize("name", [*(pytest.param(f"resnet{n}", marks=pytest.mark.slow) for n in (18, 50)), "tiny"])
def test_features_are_those_of_pytorch_by_running_statistics(name, rng):
    resnet = random_weights(lambda: ResNet(RESNETS[name], nnx.Rngs(0)))
    signals = 3 * rng.standard_normal((2, 12, SAMPLES)).astype(np.float32)
    run = nnx.jit(ResNet.__call__, static_argnums=2)
    for _ in range(2):
        run(resnet, signals, True)
    theirs, _ = copied(resnet)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(signals)).numpy()
    np.testing.assert_allclose(run(resnet, signals, False), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "channels", "parameters"), [("resnet18", 512, 3.84e6), ("resnet50", 2048, 15.9e6), ("resnet101", 2048, 28.2e6)]
)
def test_sizes_are_the_published_ones(name, channels, parameters):
    shape = jax.eval_shape(lambda: nnx.split(ResNet(RESNETS[name], nnx.Rngs(0)), nnx.Param, ...)[1])
    found = jax.eval_shape(lambda: ResNet(RESNETS[name], nnx.Rngs(0))(np.zeros((1, 12, 500), np.float32)))
    assert found.shape == (1, channels, 32)
    assert sum(leaf.size for leaf in jax.tree.leaves(shape)) == pytest.approx(parameters, rel=0.01)


def test_negatives_gathered_over_8_devices_are_those_of_1(rng):
    left, right = rng.standard_normal((2, 16, 8)).astype(np.float32)
    loss = jax.jit(jax.value_and_grad(contrast, argnums=(0, 1)))
    rows = batch_sharding(make_mesh(8, 1, 1))
    (one, of_one), (eight, of_eight) = loss(left, right), loss(*jax.device_put((left, right), rows))
    assert float(eight) == pytest.approx(float(one), rel=1e-6)
    for a, b in zip(of_one, of_eight):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # Contrasted within each device's two rows alone, the loss would be another.
    apart = np.mean([contrast(left[i : i + 2], right[i : i + 2]) for i in range(0, 16, 2)])
    assert abs(apart - float(one)) > 0.1


def test_agreeing_pairs_have_a_lower_loss_than_pairs_that_do_not(rng):
    rows = rng.standard_normal((8, 16)).astype(np.float32)
    assert float(contrast(rows, 2 * rows)) < 0.1 < float(contrast(rows, rows[::-1]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "merl"}, r"size: 'base' found with kind 'merl', one of \('resnet18', 'resnet50', 'resnet101', 'tiny'\)"),
        ({"size": "resnet18"}, r"size: 'resnet18' found with kind 'st_mem', one of \('base', 'tiny'\) expected"),
        ({"kind": "merl", "size": "tiny", "patch": 20}, "patch: 20 found with kind 'merl', which has no patches; 0 expected"),
        (
            {"text_encoder": "folder"},
            "text_encoder: 'folder' found with kind 'st_mem', which reads no reports by it; '' expected",
        ),
    ],
)
def test_settings_of_another_kind_are_refused(fields, message):
    with pytest.raises(SettingsError, match=f"^{message}"):
        EncoderConfig(**fields)
