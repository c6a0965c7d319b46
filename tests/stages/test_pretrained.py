"""The way of a Hugging Face folder through all stages, with LoRA and bfloat16 as the published experiments use it."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx, serialization
from safetensors.numpy import load_file, save_file

from ecgbyte_jax.errors import ConfigError, EcgByteError, WeightsError
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.prompt import render
from ecgbyte_jax.inputs.text import load_text_tokenizer, train_text_tokenizer
from ecgbyte_jax.model.build import Parts, build_model, check_fit
from ecgbyte_jax.model.config import DecoderConfig, LongScaling
from ecgbyte_jax.model.lora import kernels
from ecgbyte_jax.model.sharding import make_mesh
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import pipeline, train
from ecgbyte_jax.stages.inquiry import Inquiry
from ecgbyte_jax.stages.pipeline import run
from ecgbyte_jax.train.restore import build_for, open_trained, positions, weights_digest
from tests.gguf_models import write_gguf
from tests.launch import ROOT
from tests.stages.asked import ask_example, asked
from tests.tiny_llama import HEADS, KV_HEADS, LAYERS, MLP, WIDTH, write_llama


@pytest.fixture
def llama(tmp_path, rng):
    """A folder as `save_pretrained` leaves it: a tiny random Llama and its text tokenizer."""
    folder = tmp_path / "llama"
    tokenizer = train_text_tokenizer(["Does this ECG show sinus rhythm? yes no none"] * 3, 320)
    return write_llama(folder, tokenizer, rng)


@pytest.fixture
def pretrained(config, llama):
    config.model.pretrained = str(llama)
    config.model.dtype = config.model.param_dtype = "bfloat16"
    config.lora.rank = 4
    config.optim.peak_rate = 1e-2
    config.optim.warmup = 4
    config.train.epochs = 1.0
    return config


def build(config) -> Parts:
    """The model of an experiment with 400 tokens, on eight devices."""
    settings = Settings.of(config)
    return build_model(settings.model, settings.lora, settings.seed, positions(settings), 400, make_mesh(8, 1, 1))


@pytest.mark.slow
def test_lora_on_pretrained_weights_runs_to_scores_and_the_loss_falls(pretrained, tmp_path, capsys):
    run(pretrained, tmp_path / "w", ["prepare", "train", "eval"])
    lines = [json.loads(line) for line in (tmp_path / "w/metrics.jsonl").open()]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.2
    assert "bfloat16" in capsys.readouterr().out
    results = json.loads((tmp_path / "w/eval/results.json").read_text())
    assert results["sequences"] == 16


@pytest.mark.slow
def test_a_tokenizer_without_bos_goes_all_the_way(pretrained, llama, tmp_path, capsys):
    """As Qwen's: no bos at all, and an eos of its own."""
    tokenizer = load_text_tokenizer(llama)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(llama)
    run(pretrained, tmp_path / "w", ["prepare", "inspect", "train", "eval", "export"])
    found = load_prepared(Workdir(tmp_path / "w"))
    assert found.ids.bos is None
    sequence = open_split(found.shards, found.manifest, "train")[0]
    ids, _ = render(found.ids, sequence.text, sequence.ecgs, 256)
    assert ids[0] == found.ids.sig_start and ids[-1] == found.ids.eos
    lengths = np.fromfile(found.shards / found.manifest.splits["train"].lengths, "<i4").reshape(-1, 2)
    assert lengths[0, 0] == len(ids)
    record = next(path.with_suffix("") for path in sorted((tmp_path / "w/synthetic").rglob("*_hr.hea")))
    run(pretrained, tmp_path / "w", ["ask"], inquiry=Inquiry((str(record),), ("Does this ECG show sinus rhythm?",)))
    assert "answer   " in capsys.readouterr().out
    exported = json.loads((tmp_path / "w/export/config.json").read_text())
    assert exported["bos_token_id"] is None and exported["eos_token_id"] == found.ids.eos
    assert load_text_tokenizer(tmp_path / "w/export").bos_token_id is None


def test_other_pretrained_weights_are_trained_anew_and_the_same_elsewhere_are_not(pretrained, llama, tmp_path, monkeypatch):
    trainings = []
    monkeypatch.setattr(train, "_train", lambda *_: (tmp_path, trainings.append(1), {}))
    run(pretrained, tmp_path / "w", ["prepare", "train"])
    run(pretrained, tmp_path / "w", ["prepare", "train"])
    assert len(trainings) == 1
    weights = llama.rename(tmp_path / "elsewhere") / "model.safetensors"
    weights.touch()
    pretrained.model.pretrained = str(weights.parent)
    run(pretrained, tmp_path / "w", ["prepare", "train"])
    assert len(trainings) == 1
    tensors = load_file(weights)
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] + 1}, weights)
    run(pretrained, tmp_path / "w", ["prepare", "train"])
    assert len(trainings) == 2


@pytest.fixture
def gguf_file(tmp_path):
    """A tiny random Llama with a head of its own in a GGUF file, its matrices in Q8_0."""
    pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=330, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        intermediate_size=MLP, max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    return write_gguf(tmp_path / "small.Q8_0.gguf", transformers.LlamaForCausalLM(config), "llama", ("Q8_0",))


@pytest.fixture
def flax_folder(llama, rng):
    """The Llama with a head of its own, in Flax's msgpack, beside a config.json that ties it."""
    tensors = load_file(llama / "model.safetensors")
    vocab_size = len(tensors["model.embed_tokens.weight"])
    tree: dict = {"lm_head": {"kernel": rng.normal(0, 0.2, (WIDTH, vocab_size)).astype(np.float32)}}
    for name, array in tensors.items():
        *modules, _ = name.split(".")
        leaf = "kernel" if "_proj" in name else "embedding" if "embed" in name else "weight"
        inner = tree
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[leaf] = array.T if leaf == "kernel" else array
    (llama / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    (llama / "model.safetensors").unlink()
    return llama


def test_new_tokens_and_padding_rows_have_a_place_in_flax_s_own_head(pretrained, flax_folder):
    pretrained.model.vocab_multiple, pretrained.model.train_new_embeddings = 128, True
    settings = Settings.of(pretrained)
    sizes = (settings.seed, positions(settings), 400)
    parts = build_model(settings.model, settings.lora, *sizes, make_mesh(8, 1, 1), first_new_id=350)
    model = parts.model(parts.trained)
    assert not parts.config.tied_embeddings and model.head.kernel.shape[1] == 350
    assert {path[-1] for path, _ in nnx.to_flat_state(parts.trained)} == {"a", "b", "new_rows", "new_head_rows"}
    assert len(model.new_head_rows[...]) == len(model.new_rows[...]) == 512 - 350
    logits = np.asarray(model(np.array([[5, 399]])))
    assert np.isfinite(logits[..., :400]).all() and np.isneginf(logits[..., 400:]).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["gguf_file", "flax_folder"])
def test_other_forms_of_a_pretrained_model_go_all_the_way(pretrained, form, tmp_path, capsys, request):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    source = request.getfixturevalue(form)
    pretrained.model.pretrained = str(source)
    pretrained.model.dtype = pretrained.model.param_dtype = "float32"  # in which PyTorch's answers are the same
    pretrained.model.vocab_multiple, pretrained.model.train_new_embeddings = 128, True
    workdir, stages = tmp_path / "w", ["prepare", "train", "eval", "export"]
    run(pretrained, workdir, stages)
    record = str(next(path.with_suffix("") for path in sorted((workdir / "synthetic").rglob("*_hr.hea"))))
    run(pretrained, workdir, ["ask"], inquiry=Inquiry((record,), ("Does this ECG show sinus rhythm?",)))
    assert "answer   " in capsys.readouterr().out
    config = json.loads((workdir / "export/config.json").read_text())
    assert config["tie_word_embeddings"] is False and "lm_head.weight" in load_file(workdir / "export/model.safetensors")
    assert ("began with the weights of small.Q8_0.gguf" in (workdir / "export/README.md").read_text()) == (form == "gguf_file")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(workdir / "export").eval()
    trained = open_trained(Settings.of(pretrained), Workdir(workdir), "last")
    ours, tokens = trained.model, len(trained.text_tokenizer)
    ids = np.random.default_rng(0).integers(0, tokens, (2, 60))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours(ids))[..., :tokens], expected[..., :tokens], atol=2e-4)
    if form == "gguf_file":  # moved and renamed, it is the same model
        pretrained.model.pretrained = str(source.rename(tmp_path / "renamed.gguf"))
    run(pretrained, workdir, ["prepare", "train", "eval"])
    assert capsys.readouterr().out.count("have not changed, nothing to do") == 3
    if form == "gguf_file":
        pretrained.export.adapter = True
        with pytest.raises(ConfigError, match=r"export\.adapter: True found, but PEFT cannot load '.*renamed\.gguf'"):
            run(pretrained, workdir, ["export"])


def test_another_quantisation_is_trained_anew_with_the_same_texts(pretrained, gguf_file, tmp_path, monkeypatch):
    trainings = []
    monkeypatch.setattr(train, "_train", lambda *_: (tmp_path, trainings.append(1), {}))
    pretrained.model.pretrained = str(gguf_file)
    run(pretrained, tmp_path / "w", ["prepare", "train"])
    prepared = (tmp_path / "w/shards/manifest.json").stat().st_mtime_ns
    content = bytearray(gguf_file.read_bytes())
    content[-3] ^= 1
    gguf_file.write_bytes(content)
    run(pretrained, tmp_path / "w", ["prepare", "train"])
    assert len(trainings) == 2 and (tmp_path / "w/shards/manifest.json").stat().st_mtime_ns == prepared
    gguf_file.write_bytes(content[:-2000])
    monkeypatch.setattr(pipeline, "_run_stage", lambda name, *_: pytest.fail(f"{name} was begun"))
    with pytest.raises(WeightsError, match=r"small\.Q8_0\.gguf: truncated"):
        run(pretrained, tmp_path / "w", ["prepare", "train"])


def test_a_prompt_longer_than_the_model_s_positions_is_refused(pretrained):
    pretrained.prompt.max_length = 505
    with pytest.raises(ConfigError, match=r"513 found, at most the 512 positions"):
        build(pretrained)


def test_prompts_on_both_sides_of_longrope_s_switch_are_refused(pretrained):
    scaling, settings = LongScaling((1.0,), (2.0,), 260, 1.0), Settings.of(pretrained)
    decoder = DecoderConfig(100, 8, 1, 1, 1, 2, 8, max_positions=512, rope_theta=1e4, rope_scaling=scaling)
    check_fit(settings.model, settings.lora, 260, decoder)
    with pytest.raises(ConfigError, match=r"261 found, at most 260 expected, after which the rotary frequencies of .* change"):
        check_fit(settings.model, settings.lora, 261, decoder)


def test_the_rows_that_round_the_vocabulary_up_are_spare(pretrained):
    pretrained.model.vocab_multiple = 128
    for name in (pretrained.model.pretrained, ""):
        pretrained.model.pretrained = name
        parts = build(pretrained)
        config = parts.model(parts.trained).config
        assert (config.vocab_size, config.spare_rows) == (512, 112)


GPT2 = {"vocab_size": 320, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 512}


def test_lora_targets_that_a_family_lacks_are_left_out_with_one_line(pretrained, prepared, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).save_pretrained(tmp_path / "gpt2")
    pretrained.model.pretrained = str(tmp_path / "gpt2")
    parts = build_for(Settings.of(pretrained), load_prepared(Workdir(prepared)), make_mesh(8, 1, 1))
    found = {name for name, _, linear in kernels(parts.model(parts.trained)) if linear.lora is not None}
    assert found == {f"attention/{name}" for name in "qkvo"} | {"mlp/up", "mlp/down"}
    assert "lora.targets: gate left out, which a gpt2 does not have" in capsys.readouterr().out
    pretrained.lora.targets = ("gate",)
    with pytest.raises(ConfigError, match=r"lora\.targets: \('gate',\) found, some of this model's kernels \('q', 'k'"):
        build(pretrained)


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda folder: (folder / "config.json").write_text('{"model_type": "mamba"}'), "model_type 'mamba' found"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: no such file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "neither model.safetensors nor"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "not readable as a text tokenizer"),
        (
            lambda folder: (folder / "config.json").write_text(
                (folder / "config.json").read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 100')
            ),
            "at most the 100 positions",
        ),
    ],
    ids=["family", "config", "weights", "tokenizer", "positions"],
)
def test_a_pretrained_folder_at_fault_is_refused_before_preparation(
    pretrained, llama, break_it, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipeline, "_run_stage", lambda name, *_: pytest.fail(f"{name} was begun"))
    break_it(llama)
    with pytest.raises(EcgByteError, match=message):
        run(pretrained, tmp_path / "w", ["tokenizer", "prepare", "train"])


def test_a_missing_folder_is_named(pretrained, tmp_path):
    pretrained.model.pretrained = str(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match=r"no folder '.*nowhere'.*hf download"):
        run(pretrained, tmp_path / "w", ["prepare", "train"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "elf_patch"])
def test_an_adapter_of_a_pretrained_model_is_exported_with_its_tokens_or_its_map(pretrained, llama, tmp_path, kind):
    pretrained.ecg_input.kind, pretrained.ecg_input.vectors = kind, 4
    pretrained.export.adapter = True
    pretrained.model.dtype = pretrained.model.param_dtype = "float32"  # in which PyTorch's answers are the same
    pretrained.model.train_new_embeddings = True
    run(pretrained, tmp_path / "w", ["prepare", "train", "export"])
    folder = tmp_path / "w/export"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(llama)
    tensors = load_file(folder / "adapter_model.safetensors")
    embedding = tensors["base_model.model.model.embed_tokens.weight"]
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert len(embedding) == max(token["id"] for token in tokens) + 1
    assert np.abs(tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]).max() > 0
    pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    records, questions = [str(tmp_path / f"w/synthetic/ptbxl/records500/00000/{i:05}_hr") for i in (1, 2)], ["Is it?", "Why?"]
    without = ("ecgbyte_jax", *(("jax", "jaxlib", "flax") if kind == "tokens" else ()))
    assert ask_example(folder, records, questions, without) == asked(pretrained, tmp_path / "w", records, questions)


SCRIPT = """if True:
    import sys, jax
    from jax.experimental import multihost_utils
    port, number, folder = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    from ecgbyte_jax.model.build import build_model
    from ecgbyte_jax.model.sharding import make_mesh
    from ecgbyte_jax.settings import Settings
    from ecgbyte_jax.train import restore
    from tests.small import small_config

    multihost_utils.assert_equal = lambda *_, **__: sys.exit("a tensor was broadcast")
    digest, hashed = restore.hashlib.file_digest, []
    restore.hashlib.file_digest = lambda *given: hashed.append(1) or digest(*given)
    config, mesh = small_config(), make_mesh(1, 2, 1)
    config.model.pretrained, config.lora.rank = folder, 4
    for scan in (False, True):
        config.model.scan_from = int(scan)
        settings = Settings.of(config)
        parts = build_model(settings.model, settings.lora, 0, 512, 400, mesh)
        kernel = parts.frozen["blocks"]["mlp"]["up"]["kernel"] if scan else parts.frozen["embedding"]
        print(kernel[...].shape, kernel[...].addressable_shards[0].data.shape)
    print([restore.weights_digest(folder) for _ in range(2)], len(hashed))
"""


@pytest.mark.slow
def test_each_of_two_processes_places_and_hashes_its_own_parts(llama):
    (llama / "more.safetensors").write_bytes(b"another file")
    together = [run_script(SCRIPT, str(port), str(number), str(llama)) for port in [free_port()] for number in range(2)]
    alone = weights_digest(str(llama))
    for process in together:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
        lines = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
        assert lines == ["(400, 32) (400, 16)", "(2, 32, 64) (2, 16, 64)", f"{[alone] * 2} 1"]
    (llama / "more.safetensors").write_bytes(b"another bile")
    assert weights_digest(str(llama)) != alone


def run_script(script: str, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]
