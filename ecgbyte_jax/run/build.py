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
from ecgbyte_jax.model.hf import grow_vocabulary, load_pretrained
from ecgbyte_jax.model.lora import LoraConfig, add_lora
from ecgbyte_jax.run.logbook import console
from ecgbyte_jax.run.sharding import make_sharded, parameter_shardings


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


def build_model(config: ConfigDict, vocab_size: int, mesh: Mesh, first_new_id: int | None = None) -> Parts:
    """The model at its start: from `model.pretrained` with rows for new tokens, or random by `model`'s sizes.

    The same config and seed give the same weights on any mesh, up to float32's last bit. With `lora.rank` > 0 only the
    LoRA paths are trained, and with `model.train_new_embeddings` the embeddings of `first_new_id` and above.
    """
    trained = nnx.LoRAParam if config.lora.rank else nnx.Param
    weights_key, rows_key, lora_key = jax.random.split(jax.random.key(config.seed), 3)
    train_from = first_new_id if config.lora.rank and config.model.train_new_embeddings else None
    rows = -(-vocab_size // config.model.vocab_multiple) * config.model.vocab_multiple

    def adapt(model: Decoder) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        model = grow_vocabulary(model, rows, rows_key, train_from=train_from)
        model.config = replace(model.config, spare_rows=model.config.vocab_size - vocab_size)
        if config.lora.rank:
            targets = _targets(config, model.config)
            add_lora(model, LoraConfig(**config.lora.to_dict() | {"targets": targets}), lora_key)
        return nnx.split(model, trained, ...)

    if config.model.pretrained:
        how = {name: config.model[name] for name in ("dtype", "param_dtype", "remat", "scan_layers")}
        shard = partial(parameter_shardings, mesh=mesh)
        model, pretrained = load_pretrained(config.model.pretrained, shard=shard, **how)
        check_fit(config, pretrained)
        left_out = [name for name in config.lora.targets if name not in pretrained.kernels]
        if config.lora.rank and left_out:
            console.print(f"lora.targets: {', '.join(left_out)} left out, which a {pretrained.family} does not have")
        parts = adapt(model)
        return Parts(model.config, *jax.device_put(parts, parameter_shardings(parts, mesh)))

    decoder = _decoder_config(config, rows)
    return Parts(decoder, *make_sharded(lambda: adapt(Decoder(decoder, nnx.Rngs(weights_key))), mesh))


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
    others = ("pretrained", "vocab_multiple", "train_new_embeddings")
    fields = {name: value for name, value in config.model.to_dict().items() if name not in others}
    return DecoderConfig(vocab_size=vocab_size, max_positions=_positions(config), **fields)


def _positions(config: ConfigDict) -> int:
    """The places that a prompt and its answer take."""
    return config.prompt.max_length + config.eval.max_new_tokens


def count(state: Any) -> int:
    """The number of parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(state))
