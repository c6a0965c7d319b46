"""The model that a config describes, on the mesh, parted into what is trained and what is frozen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.decoder import Decoder, DecoderConfig
from ecgbyte_jax.model.hf import grow_vocabulary, load_pretrained
from ecgbyte_jax.model.lora import LoraConfig, add_lora
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


def build_model(config: ConfigDict, vocab_size: int, mesh: Mesh) -> Parts:
    """The model at its start: from `model.pretrained` with rows for new tokens, or random by `model`'s sizes.

    The same config and seed give the same weights on any mesh, up to float32's last bit. With `lora.rank` > 0
    only the LoRA paths are trained.
    """
    trained = nnx.LoRAParam if config.lora.rank else nnx.Param
    weights_key, rows_key, lora_seed = jax.random.split(jax.random.key(config.seed), 3)

    def adapt(model: Decoder) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        if config.lora.rank:
            lora = LoraConfig(**config.lora.to_dict())
            add_lora(model, lora, nnx.Rngs(lora_seed))
        return nnx.split(model, trained, ...)

    if config.model.pretrained:
        types = {name: config.model[name] for name in ("dtype", "param_dtype", "remat")}
        model, pretrained = load_pretrained(Path(config.model.pretrained), **types)
        if pretrained.max_positions < _positions(config):
            raise ConfigError(
                f"prompt.max_length + eval.max_new_tokens: {_positions(config)} found, at most the {pretrained.max_positions} "
                f"positions of '{config.model.pretrained}' wanted"
            )
        model = grow_vocabulary(model, vocab_size, rows_key)
        parts = adapt(model)
        return Parts(model.config, *jax.device_put(parts, parameter_shardings(parts, mesh)))

    decoder = _decoder_config(config, vocab_size)
    return Parts(decoder, *make_sharded(lambda: adapt(Decoder(decoder, nnx.Rngs(weights_key))), mesh))


def _decoder_config(config: ConfigDict, vocab_size: int) -> DecoderConfig:
    fields = {k: v for k, v in config.model.to_dict().items() if k != "pretrained"}
    return DecoderConfig(vocab_size=vocab_size, max_positions=_positions(config), **fields)


def _positions(config: ConfigDict) -> int:
    """The places that a prompt and its answer take."""
    return config.prompt.max_length + config.eval.max_new_tokens


def count(state: Any) -> int:
    """The number of parameters in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(state))
