import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.pretrain.text_encoder import encode_by_bert, encode_by_words, report_flops

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sinus", "rhythm", "normal", "##ly", "."]
TEXTS = ["Sinus rhythm.", "", "normal", "sinus rhythm " * 60]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A small BERT with random weights, as transformers writes it."""
    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, max_position_embeddings=80, initializer_range=0.3, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def encoded(folder: Path, texts: list[str]) -> np.ndarray:
    return np.concatenate(list(encode_by_bert(folder, texts)))


@pytest.fixture
def changed(bert, tmp_path):
    """Copies the BERT with other tensors or fields."""

    def change(rename=lambda name: name, fields: dict = {}, without: str = "no such name") -> Path:  # noqa: B006
        for file in bert.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        tensors = load_file(bert / "model.safetensors")
        save_file({rename(n): t for n, t in tensors.items() if without not in n}, tmp_path / "model.safetensors")
        config = json.loads((bert / "config.json").read_text()) | fields
        (tmp_path / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
        return tmp_path

    return change


def test_pooled_features_are_those_of_transformers(bert):
    texts = TEXTS * 17  # 68: more than are encoded together
    model = transformers.BertModel.from_pretrained(bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    expected = []
    for text in TEXTS:  # one by one, so that nothing is padded
        with torch.no_grad():
            ids = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
            expected.append(model(**ids).pooler_output[0].numpy())
    assert len({row.tobytes() for row in expected}) == len(TEXTS) and ids["input_ids"].shape == (1, 64)
    found = encoded(bert, texts)
    assert found.shape == (68, 32)
    np.testing.assert_allclose(found, np.tile(expected, (17, 1)), atol=1e-5)


def test_the_arithmetic_of_a_text_by_hand(bert):
    block = 64 * (4 * 32 * 32 + 2 * 32 * 48) + 2 * 64**2 * 32  # of 64 tokens
    assert report_flops(str(bert)) == 2 * (2 * block + 32 * 32) and report_flops("") == 0


def test_a_pretraining_model_with_the_first_names_of_its_norms_is_read_alike(bert, changed):
    spelt = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(name: str) -> str:
        for new, old in spelt.items():
            name = name.replace(new, old)
        return f"bert.{name}"

    folder = changed(rename)
    tensors = load_file(folder / "model.safetensors") | {"cls.seq_relationship.bias": np.zeros(2, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    np.testing.assert_array_equal(encoded(folder, TEXTS), encoded(bert, TEXTS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": {"model_type": "roberta"}}, r"config\.json: model_type 'roberta' found, one of \('bert',\) expected"),
        ({"fields": {"hidden_act": "relu"}}, r"config\.json: hidden_act 'relu' found, one of \('gelu',\) expected"),
        ({"fields": {"num_attention_heads": 5}}, r"config\.json: hidden_size 32 found, a multiple of num_attention_heads 5"),
        ({"fields": {"intermediate_size": None}}, r"config\.json: field 'intermediate_size' is missing, which a BERT has"),
        ({"fields": {"intermediate_size": 50}}, r"has shape \(48,\), \(50,\) expected; .* and 3 more$"),
        (
            {"without": "pooler"},
            r"the weights are no BERT's: no tensor for pooler\.dense\.bias; no tensor for pooler\.dense\.w",
        ),
        ({"rename": lambda name: name.replace("key", "keys")}, r"no place for encoder\.layer\.0\.attention\.self\.keys\."),
    ],
)
def test_what_is_no_bert_is_refused_in_one_line(changed, change, message):
    with pytest.raises(WeightsError, match=message) as caught:
        encoded(changed(**change), TEXTS)
    assert str(caught.value).startswith("encoder.text_encoder: ") and "\n" not in str(caught.value)


def test_a_folder_without_a_model_and_a_tokenizer_of_more_words_are_refused(changed, tmp_path):
    with pytest.raises(WeightsError, match=r"nothing/config\.json: No such file or directory; a Hugging Face folder of a BERT"):
        encoded(tmp_path / "nothing", TEXTS)
    folder = changed(fields={"vocab_size": 8})
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"] = tensors["embeddings.word_embeddings.weight"][:8]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"a tokenizer of 10 tokens found, vocab_size 8 in config\.json at most expected"):
        encoded(folder, TEXTS)


def test_texts_by_their_words_are_alike_where_they_share_words_and_tell_an_answer_with_its_question():
    texts = ["Atrial fibrillation.", "atrial  FIBRILLATION .", "atrial flutter.", "normal ECG", "",
             "Flutter? yes Block? no", "Flutter? no Block? yes"]  # fmt: skip
    rows = np.concatenate(list(encode_by_words(texts)))
    assert rows.shape == (7, 768) and np.isfinite(rows).all()
    cosines = np.corrcoef(rows)
    assert cosines[0, 1] == pytest.approx(1) and cosines[0, 2] > 0.25 > 0.15 > abs(cosines[0, 3])
    assert cosines[5, 6] < 0.8  # the same words, in other pairs
    np.testing.assert_array_equal(rows, np.concatenate(list(encode_by_words(texts))))
