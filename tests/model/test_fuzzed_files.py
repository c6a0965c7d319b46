"""Damaged and unusual files of models and adapters: a typed error, or the result of transformers and PEFT."""

import copy
import json
import math
import shutil
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.families.table import FAMILIES as TABLE
from ecgbyte_jax.model.hf import load_pretrained, read_config
from ecgbyte_jax.model.lora import kernels
from ecgbyte_jax.model.peft import load_adapter

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")

pytestmark = pytest.mark.slow

FIXTURES = ("llama3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "opt")
SIZES = {
    "vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": None,
}  # fmt: skip
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 3.0, 4.0]}
MADE = {
    "gemma3_text": SIZES | {"head_dim": 8, "sliding_window": 6, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    "olmo2": SIZES,
    "smollm3": SIZES | {"no_rope_layer_interval": 2},
    "qwen3_5_text": SIZES
    | {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6}
    | {"linear_value_head_dim": 5, "full_attention_interval": 2},
    "phi3": SIZES | {"partial_rotary_factor": 0.75, "rope_scaling": LONG, "original_max_position_embeddings": 32},
}
FAMILIES = (*FIXTURES, *MADE)
CONFIGS, INDEXES, ADAPTERS = 750, 500, 1000  # changed files, of config.json over all families
COMPARED_EVERY = 4  # configs with transformers, which takes most of the time
IDS = np.arange(1, 18)[None]
VALUES = (
    *(None, True, False, 0, 1, 2, 3, 4, 8, -1, 0.5, 1e-5, 1e-6, 1e4, 5e5, math.nan, math.inf, 2**31, 10**400, "", "6", "1e-5"),
    *("silu", "gelu", "relu", "gelu_new", "sliding_attention", "llama", [], {}, [1], [None, "x"], {"a": 1}, "\ud800", "x\0y"),
    *("linear", "dynamic", "yarn", "longrope"),
)
# PEFT decides by these where adapters go; here the file's tensors decide.
PLACES = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "inference_mode", "task_type"}


def mutated(settings: dict, rng: np.random.Generator, kept: set[str] = frozenset()) -> str:
    """The JSON with one or two fields changed, swapped, removed or added, and sometimes with damaged characters."""
    changed = copy.deepcopy(settings)
    for _ in range(rng.integers(1, 3)):
        parts = [changed, *(value for value in changed.values() if isinstance(value, dict) and value)]
        part = parts[rng.integers(len(parts))]
        names = [name for name in part if name not in kept]
        name = names[rng.integers(len(names))]
        match rng.integers(5):
            case 0:
                del part[name]
            case 1 if len(names) > 1:
                part[name] = part[names[rng.integers(len(names))]]
            case 2 if isinstance(part[name], int | float) and abs(part[name]) < 2**60:
                part[name] = part[name] * [0.5, 2, -1, 1.0][rng.integers(4)]
            case 3:
                alike = [value for value in VALUES if type(value) is type(part[name])] or VALUES
                part[name] = alike[rng.integers(len(alike))]
            case _:
                part[name] = VALUES[rng.integers(len(VALUES))]
        changed |= {f"field_{rng.integers(9)}": VALUES[rng.integers(len(VALUES))]} if rng.random() < 0.1 else {}
    text = json.dumps(changed, indent=1)
    return flipped(text.encode(), rng).decode("latin-1") if rng.random() < 0.1 else text


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """The data with up to three bits flipped, or cut off."""
    if rng.random() < 0.2:
        return data[: rng.integers(len(data))]
    damaged = bytearray(data)
    for place in rng.integers(len(damaged), size=rng.integers(1, 4)):
        damaged[place] ^= 1 << rng.integers(8)
    return bytes(damaged)


def their_logits(folder) -> np.ndarray | None:
    """The logits of transformers, or None where it does not load the folder either."""
    try:
        model, about = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        if any(about.values()):
            return None
        with torch.no_grad():
            return model.eval()(torch.tensor(IDS)).logits.numpy()
    except Exception:  # a damaged file may raise anything
        return None


def make(family: str, folder) -> None:
    """A small model of random weights, written by transformers."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **MADE[family])
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms too
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)


def both_spellings(folder) -> list[dict]:
    """The config.json of transformers 5, and that of transformers 4 which we write."""
    config = read_config(folder)
    written = {"model_type": config.family, "torch_dtype": "float32"} | TABLE[config.family].write(config)
    return [json.loads((folder / "config.json").read_text()), json.loads(json.dumps(written))]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_config_is_refused_or_gives_transformers_logits(family, shared, tmp_path):
    if family in MADE:
        make(family, tmp_path)
    else:
        for file in ("model.safetensors", "config.json"):
            shutil.copyfile(shared / "fixtures/hf_torch" / family / file, tmp_path / file)
    spellings, known, compared = both_spellings(tmp_path), {}, 0
    for seed in range(CONFIGS // len(FAMILIES)):
        settings = spellings[seed // COMPARED_EVERY % 2]
        text = mutated(settings, np.random.default_rng(seed), kept={"model_type", "dtype", "torch_dtype"})
        (tmp_path / "config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            ours, config = load_pretrained(tmp_path)
        except WeightsError as error:
            assert "\n" not in str(error), (seed, str(error))
            continue
        compares = seed % COMPARED_EVERY == 0 and config.max_positions >= IDS.size  # longer rows are refused
        theirs = their_logits(tmp_path) if compares else None
        if theirs is not None:
            if config not in known:
                with jax.disable_jit():
                    known[config] = np.asarray(ours(IDS))
            np.testing.assert_allclose(known[config], theirs, atol=5e-4, err_msg=f"{family}, seed {seed}: {text}")
            compared += 1
    assert compared > CONFIGS // len(FAMILIES) // COMPARED_EVERY // 20


def test_a_changed_index_is_refused_or_gives_the_same_model(shared, tmp_path):
    source = shared / "fixtures/hf_torch/llama3"
    shutil.copyfile(source / "config.json", tmp_path / "config.json")
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, part in files.items() for name in part}}
    expected = load_pretrained(source)[0].embedding[...]
    loaded = 0
    for seed in range(INDEXES):
        text = mutated(index, np.random.default_rng(seed))
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            np.testing.assert_array_equal(load_pretrained(tmp_path)[0].embedding[...], expected)
            loaded += 1
        except WeightsError as error:
            assert "\n" not in str(error), (seed, str(error))
    assert 0 < loaded < INDEXES


def changed_tensors(tensors: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    names, changed = sorted(tensors), dict(tensors)
    name, other = (names[i] for i in rng.integers(len(names), size=2))
    match rng.integers(7):
        case 0:
            del changed[name]
        case 1:
            changed[name] = np.ascontiguousarray(changed[name].T)
        case 2:
            changed[name] = changed[name].astype([np.float16, np.float64, np.int8, bool][rng.integers(4)])
        case 3:
            changed[name] = np.full_like(changed[name], [np.nan, np.inf][rng.integers(2)])
        case 4:
            changed[name], changed[other] = changed[other], changed[name]
        case 5:
            changed[name] = changed[name].ravel() if rng.random() < 0.5 else changed[name][:, :0]
        case _:
            changed[name.replace("model.", "modle.", 1)] = changed.pop(name)
    return changed


def their_weights(base, folder) -> dict[str, np.ndarray] | None:
    """The kernels with PEFT's adapter merged in, or None where PEFT does not load it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)
        kernels = {}
        for name, layer in model.get_base_model().named_modules():
            if isinstance(layer, peft.tuners.lora.Linear):
                kernels[name] = (layer.base_layer.weight + layer.get_delta_weight("default")).detach().numpy()
        return kernels
    except Exception:  # a damaged file may raise anything
        return None


def test_a_changed_adapter_is_refused_or_gives_peft_s_weights(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 3}
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()
    base.save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(
        r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"], rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"down_proj|o_proj": 10}, init_lora_weights=False, task_type="CAUSAL_LM",
    )  # fmt: skip
    peft.get_peft_model(copy.deepcopy(base), lora).save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    folder, compared = tmp_path / "changed", 0
    folder.mkdir()
    ours, _ = load_pretrained(tmp_path / "base")
    places = {"attention/q": "self_attn.q_proj", "mlp/down": "mlp.down_proj"}
    for seed in range(ADAPTERS):
        rng = np.random.default_rng(seed)
        text = json.dumps(settings) if rng.random() < 0.4 else mutated(settings, rng, PLACES)
        (folder / "adapter_config.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        weights = folder / "adapter_model.safetensors"
        save_file(changed_tensors(tensors, rng) if rng.random() < 0.4 else tensors, weights)
        if rng.random() < 0.2:
            weights.write_bytes(flipped(weights.read_bytes(), rng))
        for _, _, linear in kernels(ours):
            linear.lora = None
        try:
            load_adapter(ours, folder)
        except WeightsError as error:
            assert "\n" not in str(error), (seed, str(error))
            continue
        theirs = their_weights(base, folder)
        if theirs is None:
            continue
        compared += 1
        for name, layer, linear in kernels(ours):
            if linear.lora is not None:
                change = linear.lora.scale * np.asarray(linear.lora.a[...]) @ np.asarray(linear.lora.b[...])
                adapted = (np.asarray(linear.kernel[...]) + change).T
                expected = theirs[f"model.layers.{layer}.{places[name]}"]
                np.testing.assert_allclose(adapted, expected, rtol=1e-4, atol=1e-5, err_msg=f"seed {seed}: {text}")
    assert compared > ADAPTERS // 20
