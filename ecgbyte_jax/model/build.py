"""The model that the settings describe, on the mesh, divided into what is trained and what is frozen."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.config import DecoderConfig, LongScaling, LoraConfig, ModelConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.hf import load_pretrained, locate, read_config
from ecgbyte_jax.model.kernels.fused import kernel_for
from ecgbyte_jax.model.lora import add_lora, check_first_layer, quantize_kernels
from ecgbyte_jax.model.quantized.formats import BLOCK
from ecgbyte_jax.model.quantized.kernel import Quantized
from ecgbyte_jax.model.sharding import abstract, make_sharded, parameter_shardings, place
from ecgbyte_jax.model.vocabulary import Described, grow_vocabulary

_COMPUTED_AS = ("dtype", "param_dtype", "remat", "scan_layers")  # settings that hold for a pretrained model too
_SIZES = ("width", "layers", "heads", "kv_heads", "head_dim", "mlp_width", "rope_theta")  # of a model from scratch


# Makes the map from signals to vectors for a model of this width, a module with `frozen`, the names of its parts that are not
# trained. None: the model reads tokens.
MakeEcgInput = Callable[[int, nnx.Rngs], Any] | None


@dataclass(frozen=True)
class Parts:
    """A model in parts: `nnx.merge(graphdef, trained, frozen)` is the model at its start."""

    config: DecoderConfig
    graphdef: Any
    trained: nnx.State
    frozen: nnx.State

    @property
    def trained_in_decoder(self) -> int:
        """The number of trained parameters that every token meets: not those of the map from signals."""
        return sum(count(part) for name, part in self.trained.items() if name != "ecg_input")

    def model(self, trained: nnx.State) -> Decoder:
        """The model with other trained parameters in place."""
        return nnx.merge(self.graphdef, trained, self.frozen)


def build_model(
    model: ModelConfig,
    lora: LoraConfig,
    seed: int,
    positions: int,
    vocab_size: int,
    mesh: Mesh,
    first_new_id: int | None = None,
    described: Described | None = None,
    ecg_input: MakeEcgInput = None,
    *,
    to_restore: bool = False,
) -> Parts:
    """The model at its start: `model.pretrained` with rows for new tokens, or random weights of `model`'s sizes.

    `positions`: of a prompt with its answer. The same settings and seed give the same weights on any mesh, up to float32's last
    bit. With `lora.rank` > 0 only the LoRA paths are trained, and with `model.train_new_embeddings` the embeddings from
    `first_new_id` on. `described`: of new tokens, see `grow_vocabulary`. `ecg_input`: see `MakeEcgInput`; its vectors are laid
    over the ids `first_new_id`. `to_restore` leaves the trained parameters abstract (jax.ShapeDtypeStruct with a sharding), for
    a checkpoint to be read into.
    """
    config = _decoder_config(model, lora, positions, vocab_size, mesh)
    grown = _grow(config, vocab_size, model.vocab_multiple)
    weights_key, keys = _keys(seed)
    how = {"first_new_id": first_new_id, "described": described, "ecg_input": ecg_input}
    adapt = partial(_adapt, grown=grown, model=model, lora=lora, keys=keys, **how)
    if to_restore and not lora.rank:  # of the decoder nothing is frozen, so none of its weights is made or read

        def make() -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
            return adapt(Decoder(config, nnx.Rngs(weights_key)))

        graphdef, trained_state, _ = jax.eval_shape(make)
        parts = graphdef, trained_state, make_sharded(lambda: make()[2], mesh)
    elif model.pretrained:
        how = {name: getattr(config, name) for name in _COMPUTED_AS}
        shard = partial(parameter_shardings, mesh=mesh)
        decoder, _ = load_pretrained(model.pretrained, shard=shard, quantize=model.quantize, **how)
        parts = place(adapt(decoder), mesh)
    else:
        parts = make_sharded(lambda: adapt(Decoder(config, nnx.Rngs(weights_key))), mesh)
    graphdef, trained_state, frozen = parts
    return Parts(grown, graphdef, abstract(trained_state, mesh) if to_restore else trained_state, frozen)


def abstract_model(
    model: ModelConfig,
    lora: LoraConfig,
    positions: int,
    vocab_size: int,
    mesh: Mesh,
    first_new_id: int | None = None,
    ecg_input: MakeEcgInput = None,
) -> Parts:
    """What `build_model` returns as shapes, types and shardings; of a pretrained model only its settings are read."""
    config = _decoder_config(model, lora, positions, vocab_size, mesh)
    grown = _grow(config, vocab_size, model.vocab_multiple)

    def make() -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        weights_key, keys = _keys(0)
        decoder = quantize_kernels(Decoder(config, nnx.Rngs(weights_key)), model.quantize)
        return _adapt(decoder, grown, model, lora, keys, first_new_id, None, ecg_input)

    graphdef, trained, frozen = jax.eval_shape(make)
    return Parts(grown, graphdef, abstract(trained, mesh), abstract(frozen, mesh))


def _keys(seed: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """The keys that random weights are drawn with; those of new rows, of LoRA's paths, and of the map from signals."""
    key = jax.random.key(seed)
    weights_key, rows_key, lora_key = jax.random.split(key, 3)
    return weights_key, (rows_key, lora_key, jax.random.fold_in(key, 3))


def _grow(config: DecoderConfig, vocab_size: int, multiple: int) -> DecoderConfig:
    """The decoder with at least `vocab_size` tokens, and spare rows up to a multiple."""
    tokens = max(config.vocab_size, vocab_size)
    unused = -tokens % multiple
    return replace(config, vocab_size=tokens + unused, spare_rows=unused)


def _adapt(
    decoder: Decoder,
    grown: DecoderConfig,
    model: ModelConfig,
    lora: LoraConfig,
    keys: tuple[jax.Array, jax.Array, jax.Array],
    first_new_id: int | None,
    described: Described | None,
    ecg_input: MakeEcgInput,
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The decoder with rows for new tokens and LoRA's paths, split into what is trained and what is frozen."""
    rows_key, lora_key, input_key = keys
    train_from = first_new_id if lora.rank and model.train_new_embeddings else None
    decoder = grow_vocabulary(decoder, grown.vocab_size, rows_key, train_from=train_from, described=described)
    decoder.config = grown
    if lora.rank:
        add_lora(decoder, replace(lora, targets=_targets(lora, grown)), lora_key)
    if ecg_input is not None:
        assert first_new_id is not None
        decoder.ecg_input, decoder.vector_id = ecg_input(grown.width, nnx.Rngs(input_key)), first_new_id
    frozen = () if decoder.ecg_input is None else decoder.ecg_input.frozen

    def is_trained(path: tuple, parameter: Any) -> bool:
        """The map from signals is, all but its frozen parts; of the decoder, with LoRA, only what that added."""
        kind = nnx.LoRAParam if lora.rank and path[0] != "ecg_input" else nnx.Param
        return issubclass(parameter.type, kind) and path[:2] not in [("ecg_input", part) for part in frozen]

    return nnx.split(decoder, is_trained, ...)


def check_fit(model: ModelConfig, lora: LoraConfig, positions: int, decoder: DecoderConfig) -> None:
    """Raises ConfigError where the settings ask for more than a pretrained model has: positions, kernels for LoRA, blocks.

    With LongRoPE all prompts must be short ones, since `generate` refuses to change the rotary frequencies within a sequence.
    """
    if decoder.max_positions < positions:
        raise ConfigError(
            f"prompt.max_length + eval.max_new_tokens: {positions} found, at most the {decoder.max_positions} positions of "
            f"'{model.pretrained}' expected"
        )
    scaling = decoder.rope_scaling
    if isinstance(scaling, LongScaling) and scaling.original_max_positions < positions:
        raise ConfigError(
            f"prompt.max_length + eval.max_new_tokens: {positions} found, at most {scaling.original_max_positions} expected, "
            f"after which the rotary frequencies of '{model.pretrained}' change (original_max_position_embeddings)"
        )
    if lora.rank:
        check_first_layer(lora, decoder.layers, stacked=False)
    if lora.rank and not _targets(lora, decoder):
        raise ConfigError(f"lora.targets: {lora.targets} found, some of this model's kernels {decoder.kernels} expected")
    rows = {"width": decoder.width, "heads times head_dim": decoder.heads * decoder.head_dim, "mlp_width": decoder.mlp_width}
    if decoder.delta:
        rows["the delta nets' values"] = decoder.delta.value_heads * decoder.delta.value_dim
    broken = [f"{name} {size}" for name, size in rows.items() if size % BLOCK]
    if model.quantize == "nf4" and broken:
        raise ConfigError(
            f"model.quantize: 'nf4' found for a model of {broken[0]}, a multiple of {BLOCK} expected; 'int8' takes any"
        )


def left_out_targets(lora: LoraConfig, decoder: DecoderConfig) -> tuple[str, ...]:
    """Those of `lora.targets` that the model does not have; none without LoRA."""
    return tuple(name for name in lora.targets if name not in decoder.kernels) if lora.rank else ()


def count(state: Any) -> int:
    """The number of parameters in a tree; a quantised kernel counts as the kernel that it approximates."""
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, Quantized))
    return sum(leaf.size * (leaf.weights if isinstance(leaf, Quantized) else 1) for leaf in leaves)


def _targets(lora: LoraConfig, decoder: DecoderConfig) -> tuple[str, ...]:
    """Those of `lora.targets` that the model has: GPT-2 and OPT, for example, have no gate."""
    return tuple(name for name in lora.targets if name in decoder.kernels)


def _decoder_config(model: ModelConfig, lora: LoraConfig, positions: int, vocab_size: int, mesh: Mesh) -> DecoderConfig:
    """The decoder before rows are added: a pretrained one's own, else one with `vocab_size` tokens."""
    remat = "" if model.remat == "auto" else model.remat  # training decides, see `train.memory`
    chosen = {"dtype": model.dtype, "param_dtype": model.param_dtype, "remat": remat}
    if model.pretrained:
        decoder = read_config(locate(model.pretrained))
        check_fit(model, lora, positions, decoder)
        decoder = replace(decoder, **chosen)
    else:
        sizes = {name: getattr(model, name) for name in _SIZES}
        decoder = DecoderConfig(vocab_size=vocab_size, max_positions=positions, **sizes, **chosen)
    deep = 0 < model.scan_from <= decoder.layers
    kernel, _ = kernel_for(mesh.devices.flat[0].platform, decoder.head_dim, decoder.dtype)
    return replace(
        decoder,
        scan_layers=deep and not lora.first_layer and decoder.delta is None,
        attention_kernel=kernel if model.attention == "auto" else "",
    )
