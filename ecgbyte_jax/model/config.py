"""What makes one decoder: sizes, and where the families differ."""

from dataclasses import dataclass

# The mesh axes that a batch and the heads are split over; see run/sharding.py for those of the parameters.
BATCH_AXES = ("data", "fsdp")
TENSOR_AXIS = "tensor"
KERNELS = ("q", "k", "v", "o", "gate", "up", "down")  # of a block, which LoRA can adapt


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the low rotary frequencies (`rope_type: llama3` in config.json)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that makes one decoder; the defaults are Llama's. `family` is Hugging Face's `model_type`.

    norm: "rms" or "layer" (with bias); norm_offset is added to the scale. post_norms: a norm behind attention and MLP too.
    qk_norm: an RMS norm of every query and key head. activation: "silu", "gelu", "gelu_tanh", "relu"; gated: SwiGLU's
    shape. rope_theta None: learned positions, looked up `position_offset` rows further on. embedding_scale: embeddings
    times sqrt(width). windows: places that each layer's attention reaches back, 0 without limit; () for none at all.
    query_scale None: head_dim^-0.5. Caps are soft, cap * tanh(x / cap); 0 for none. spare_rows: at the end of the
    vocabulary, which stand for no token. dtype computes, param_dtype stores. remat: "" or the policy of
    `jax.checkpoint_policies` that says what a block keeps for the backward pass. scan_layers: the blocks' parameters are
    stacked, and one compiled block is run over them.
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
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_offset: float = 0.0
    post_norms: bool = False
    qk_norm: bool = False
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

    @property
    def layer_windows(self) -> tuple[int, ...]:
        """The window of every layer, 0 without limit."""
        return self.windows or (0,) * self.layers

    @property
    def kernels(self) -> tuple[str, ...]:
        """Those that this model's blocks have."""
        return tuple(name for name in KERNELS if self.gated or name != "gate")
