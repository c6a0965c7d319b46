"""The model that a config describes, on the mesh, parted into what is trained and what is frozen."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.hf import grow_vocabulary, load_pretrained, locate, read_config
from ecgbyte_jax.model.lora import LoraConfig, add_lora
from ecgbyte_jax.run.logbook import console
from ecgbyte_jax.run.sharding import abstract, make_sharded, parameter_shardings, place


@dataclass(frozen=True)
class Parts:
    """A model in parts: `nnx.merge(graphdef, trained, frozen)` is the model at its start."""

    config: DecoderConfig
    graphdef: Any
    trained: nnx.State
    frozen: nnx.State

    def model(self, trained: nnx.State) -> Decoder:
        """The model with other trained parameters in place."""
        return nnx.merge(self.graphdef, trained, self.frozen)


def build_model(
    config: ConfigDict, vocab_size: int, mesh: Mesh, first_new_id: int | None = None, *, to_restore: bool = False
) -> Parts:
    """The model at its start: from `model.pretrained` with rows for new tokens, or random by `model`'s sizes.

    The same config and seed give the same weights on any mesh, up to float32's last bit. With `lora.rank` > 0 only the
    LoRA paths are trained, and with `model.train_new_embeddings` the embeddings of `first_new_id` and above. `to_restore`
    leaves the trained parameters abstract (jax.ShapeDtypeStruct with a sharding): a checkpoint holds them.
    """
    trained = nnx.LoRAParam if config.lora.rank else nnx.Param
    weights_key, rows_key, lora_key = jax.random.split(jax.random.key(config.seed), 3)
    train_from = first_new_id if config.lora.rank and config.model.train_new_embeddings else None
    decoder = _decoder_config(config, vocab_size)
    tokens = max(decoder.vocab_size, vocab_size)
    unused = -tokens % config.model.vocab_multiple
    grown = replace(decoder, vocab_size=tokens + unused, spare_rows=unused)

    def adapt(model: Decoder) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        model = grow_vocabulary(model, grown.vocab_size, rows_key, train_from=train_from)
        model.config = grown
        if config.lora.rank:
            targets = _targets(config, model.config)
            add_lora(model, LoraConfig(**config.lora.to_dict() | {"targets": targets}), lora_key)
        return nnx.split(model, trained, ...)

    if to_restore and not config.lora.rank:  # nothing is frozen, so that no weight is made or read
        parts = jax.eval_shape(lambda: adapt(Decoder(decoder, nnx.Rngs(weights_key))))
    elif config.model.pretrained:
        left_out = [name for name in config.lora.targets if name not in decoder.kernels]
        if config.lora.rank and left_out:
            console.print(f"lora.targets: {', '.join(left_out)} left out, which a {decoder.family} does not have")
        how = {name: getattr(decoder, name) for name in ("dtype", "param_dtype", "remat", "scan_layers")}
        model, _ = load_pretrained(config.model.pretrained, shard=partial(parameter_shardings, mesh=mesh), **how)
        parts = place(adapt(model), mesh)
    else:
        parts = make_sharded(lambda: adapt(Decoder(decoder, nnx.Rngs(weights_key))), mesh)
    graphdef, trained, frozen = parts
    return Parts(grown, graphdef, abstract(trained, mesh) if to_restore else trained, frozen)


def check_fit(config: ConfigDict, model: DecoderConfig) -> None:
    """Raises ConfigError where the settings ask for more than a pretrained model has: positions, or kernels for LoRA."""
    if model.max_positions < _positions(config):
        raise ConfigError(
            f"prompt.max_length + eval.max_new_tokens: {_positions(config)} found, at most the {model.max_positions} "
            f"positions of '{config.model.pretrained}' wanted"
        )
    if config.lora.rank and not _targets(config, model):
        raise ConfigError(
            f"lora.targets: {tuple(config.lora.targets)} found, of the kernels {model.kernels} of this model wanted"
        )


def _targets(config: ConfigDict, model: DecoderConfig) -> tuple[str, ...]:
    """Those of `lora.targets` that the model has: GPT-2 and OPT, for example, have no gate."""
    return tuple(name for name in config.lora.targets if name in model.kernels)


def _decoder_config(config: ConfigDict, vocab_size: int) -> DecoderConfig:
    """The decoder before rows are added: of a pretrained one its own, else with `vocab_size` tokens."""
    fields = config.model.to_dict()
    pretrained, _, _ = (fields.pop(name) for name in ("pretrained", "vocab_multiple", "train_new_embeddings"))
    if not pretrained:
        return DecoderConfig(vocab_size=vocab_size, max_positions=_positions(config), **fields)
    found = read_config(locate(pretrained))
    check_fit(config, found)
    return replace(found, **{name: fields[name] for name in ("dtype", "param_dtype", "remat", "scan_layers")})


def _positions(config: ConfigDict) -> int:
    """The places that a prompt and its answer take."""
    return config.prompt.max_length + config.eval.max_new_tokens


def count(state: Any) -> int:
    """The number of parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(state))
