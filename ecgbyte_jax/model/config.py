"""The settings of a decoder: its sizes, and what distinguishes the families."""

from dataclasses import dataclass

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.rules import Rule, above, at_least, check, one_of, setting, some_of

# The mesh axes that a batch and the heads are split over; see sharding.py for those of the parameters.
BATCH_AXES = ("data", "fsdp")
TENSOR_AXIS = "tensor"
# Names of what a block may keep for the backward pass: products of attention or a delta net, and the MLP's hidden products.
ATTENTION, MLP_HIDDEN = "attention", "mlp hidden"
# Values of `remat` -> the names that are kept: the rest of a block is computed again, without a large product in `products`.
KEPT = {"products": (ATTENTION, MLP_HIDDEN), "attention": (ATTENTION,), "inputs": ()}
KERNELS = ("q", "k", "v", "o", "gate", "up", "down")  # linear maps of a block, or of its parts; LoRA can adapt each
DELTA_KERNELS = ("beta", "decay")  # narrow linear maps of a delta net; PEFT's adapters may have paths there


@dataclass(frozen=True)
class LinearScaling:
    """All rotary frequencies are divided by `factor` (Chen et al. 2023; `rope_type: linear` in config.json)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """A base that grows with sequences of more than the model's positions (`rope_type: dynamic`).

    Such sequences are refused, and within its positions the model is one without scaling.
    """

    factor: float


@dataclass(frozen=True)
class YarnScaling:
    """Low rotary frequencies are divided by `factor`, high ones kept (Peng et al. 2023, section 3; `rope_type: yarn`).

    Between the channels that turn `beta_slow` and `beta_fast` times in the original positions (`truncate`: rounded outwards)
    is a ramp. Cosines and sines are multiplied by `attention_factor`.
    """

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the low rotary frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class LongScaling:
    """LongRoPE (Ding et al. 2024; `rope_type: longrope`): a divisor of every rotary frequency, other ones for long sequences.

    Those of more than `original_max_positions` tokens are long. Cosines and sines are multiplied by `attention_factor`.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    attention_factor: float


RopeScaling = LinearScaling | DynamicScaling | YarnScaling | Llama3Scaling | LongScaling


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al. 2021) of base `theta`, on the first `channels` of a head."""

    theta: float
    channels: int
    scaling: RopeScaling | None = None

    @property
    def amplitude(self) -> float:
        """The factor of all cosines and sines."""
        return self.scaling.attention_factor if isinstance(self.scaling, YarnScaling | LongScaling) else 1.0


@dataclass(frozen=True)
class DeltaConfig:
    """Gated delta nets (Yang et al. 2024) in place of attention in these layers.

    key_heads: of queries and keys; value_heads: value_heads / key_heads consecutive ones belong to a key head; key_dim,
    value_dim: widths of a head; conv_width: tokens that the convolution reaches over, its own among them.
    """

    layers: tuple[int, ...]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int


@dataclass(frozen=True)
class DecoderConfig:
    """The architecture of a decoder; the defaults are Llama's. `family` is Hugging Face's `model_type`.

    norm: "rms" or "layer" (with bias); norm_offset is added to the scale. pre_norms, post_norms: a norm before, and one after,
    attention and MLP. qk_norm: an RMS norm of the queries and keys, "head": of every head, "all": of all heads together.
    attention_gate: attention's output is multiplied by a sigmoid of as many channels more that `q` returns, head by head.
    delta: the layers without attention. activation: "silu", "gelu", "gelu_tanh", "relu"; gated: a gated MLP, as in SwiGLU.
    rope_theta None: learned positions, looked up at position + position_offset. local_rope_theta: the unscaled base of layers
    with a window; None: as in the others. rotary_channels: the first ones of a head, which have rotary positions; 0: all.
    unrotated_layers: the numbers of layers without rotary positions. embedding_scale: embeddings are multiplied by sqrt(width).
    windows: positions that each layer's attention reaches back, 0: no limit; (): no limit anywhere. query_scale None:
    head_dim^-0.5. Caps are soft, cap * tanh(x / cap); 0: none. spare_rows: rows at the end of the vocabulary that are no token.
    dtype: of the computation, param_dtype: of the stored weights. remat: "" (everything) or what of `KEPT` a block keeps for
    the backward pass. scan_layers: the blocks' parameters are stacked, and one compiled block runs over them; with `delta`
    there are blocks of two kinds, and ConfigError is raised. attention_kernel: "" or the fused kernel (see `kernels.fused`) by
    which a row's tokens attend to each other where there is no cache; with "flash" one new token attends to a cache by one too.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    max_positions: int
    rope_theta: float | None
    family: str = "llama"
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None
    rotary_channels: int = 0
    unrotated_layers: tuple[int, ...] = ()
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    pre_norms: bool = True
    post_norms: bool = False
    qk_norm: str = ""
    attention_gate: bool = False
    delta: DeltaConfig | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: str = "silu"
    gated: bool = True
    position_offset: int = 0
    embedding_scale: bool = False
    windows: tuple[int, ...] = ()
    query_scale: float | None = None
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    tied_embeddings: bool = True
    spare_rows: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = ""
    scan_layers: bool = False
    attention_kernel: str = ""

    def __post_init__(self) -> None:
        if self.delta and self.scan_layers:
            raise ConfigError(f"scan_layers: True found, False expected: a {self.family} has blocks of two kinds")

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The numbers of the layers with attention."""
        return tuple(i for i in range(self.layers) if self.delta is None or i not in self.delta.layers)

    @property
    def layer_windows(self) -> tuple[int, ...]:
        """The window of every layer, 0: no limit."""
        return self.windows or (0,) * self.layers

    @property
    def layer_rotaries(self) -> tuple[Rotary | None, ...]:
        """The rotary positions of every layer, None: none."""
        if self.rope_theta is None:
            return (None,) * self.layers
        channels = self.rotary_channels or self.head_dim
        everywhere = Rotary(self.rope_theta, channels, self.rope_scaling)
        local = everywhere if self.local_rope_theta is None else Rotary(self.local_rope_theta, channels)
        rotaries = [local if window else everywhere for window in self.layer_windows]
        return tuple(None if i in self.unrotated_layers else rotary for i, rotary in enumerate(rotaries))

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernels that this model's blocks have."""
        return tuple(name for name in KERNELS if self.gated or name != "gate")


_FLOATS = one_of("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelConfig:
    """The language model that a run trains: pretrained, or from scratch with the sizes below. Raises SettingsError."""

    pretrained: str = setting(
        "", 'a Hugging Face folder or hub id, or a GGUF file; "": from scratch with the sizes below', is_path=True
    )
    width: int = setting(256, "width of the residual stream", at_least(1))
    layers: int = setting(4, "blocks", at_least(1))
    heads: int = setting(4, "query heads", at_least(1))
    kv_heads: int = setting(4, "key and value heads", at_least(1))
    head_dim: int = setting(64, "width of a head", Rule(lambda width: width >= 2 and width % 2 == 0, "an even number"))
    mlp_width: int = setting(768, "hidden width of the MLP", at_least(1))
    rope_theta: float = setting(10_000.0, "base of the rotary positions", above(0))
    dtype: str = setting("float32", "number type of the computation", _FLOATS)
    param_dtype: str = setting("float32", "number type of the stored weights", _FLOATS)
    remat: str = setting(
        "auto",
        'what a block keeps for the backward pass: "" everything; "products" (only what is cheap is computed again); '
        '"attention" (the MLP is computed again); "inputs" (all is); "auto": "" on CPUs, elsewhere the first other one that '
        "fits the devices",
        one_of("auto", "", *KEPT),
    )
    scan_from: int = setting(
        12,
        "models of this many layers or more run one compiled block over stacked parameters, which compiles much faster "
        "(not with lora.first_layer or blocks of two kinds); 0: none",
        at_least(0),
    )
    attention: str = setting(
        "auto",
        '"auto": fused kernels on GPUs and TPUs, which keep no scores; "plain": as on CPUs',
        one_of("auto", "plain"),
    )
    quantize: str = setting(
        "",
        'with LoRA: number format of the frozen kernels, "int8" or "nf4" (QLoRA); "": floats as above',
        one_of("", "int8", "nf4"),
    )
    vocab_multiple: int = setting(
        128, "the embedding is padded to a multiple of this many rows, which mesh.tensor should divide", at_least(1)
    )
    new_rows: str = setting(
        "mean",
        'pretrained: initial embeddings of the ECG tokens: "mean": the mean of the others, as published; "waveform": by the '
        "shape of each token's signal, as far from the mean as the others",
        one_of("mean", "waveform"),
    )
    train_new_embeddings: bool = setting(False, "with LoRA: also train the embeddings of the ECG tokens (published: frozen)")

    def __post_init__(self) -> None:
        divides = self.kv_heads and self.heads % self.kv_heads == 0
        check(self, ["" if divides else f"kv_heads: {self.kv_heads} found, a divisor of heads {self.heads} expected"])


@dataclass(frozen=True)
class LoraConfig:
    """The low-rank paths (Hu et al. 2021) that are trained beside frozen kernels. Raises SettingsError."""

    rank: int = setting(0, "rank of the paths; 0: no LoRA, all weights are trained", at_least(0))
    alpha: float = setting(32.0, "a path is scaled by alpha / rank", above(0))
    dropout: float = setting(0.05, "dropout on a path's input", Rule(lambda share: 0 <= share < 1, "0 or more, below 1"))
    targets: tuple[str, ...] = setting(KERNELS, "kernels that get a path, where a pretrained model has them", some_of(*KERNELS))

    first_layer: int = setting(
        0,
        "blocks before this one, counted from 0, get no path, and need no backward pass where embeddings are frozen",
        at_least(0),
    )

    def __post_init__(self) -> None:
        missing = self.rank and not self.targets
        check(self, ["targets: none found, at least one expected where rank is above 0" if missing else ""])
