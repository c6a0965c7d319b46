"""The way of an instruct model's folder through all stages: conversations by its chat template."""

import json

import pytest
from ml_collections import ConfigDict

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.errors import SettingsError, TokenizerError
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.stages.pipeline import run
from tests.chat_folders import chat_tokenizer, write_chat_folder
from tests.small import small_config
from tests.stages.asked import ask_example, asked
from tests.tiny_llama import write_llama

ANSWERS = ("About 70 beats a minute.", "yes", "sinus rhythm")


def conversation(number: int) -> list[dict]:
    """Of one, two or three questions."""
    questions = ("What is the rate?", "Is it sinus rhythm?", "Which rhythm?")
    texts = [text for turn in range(1 + number % 3) for text in (questions[turn], ANSWERS[turn])]
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Synthetic recordings of ten patients, and a table of conversations about them."""
    folder = tmp_path_factory.mktemp("recordings")
    write_demo(folder, folder / "questions", 20, 0)
    splits = ["train"] * 12 + ["valid"] * 4 + ["test"] * 4
    rows = [
        {"record": f"records500/00000/{n + 1:05d}_hr", "patient": f"p{n // 2}", "split": split, "messages": conversation(n)}
        for n, split in enumerate(splits)
    ]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def chat_config(recordings, folder) -> ConfigDict:
    config = small_config()
    config.data.corpus, config.data.synthetic_records = "own", 0
    config.data.root, config.data.table = str(recordings), str(recordings / "table.jsonl")
    config.model.pretrained, config.prompt.format = str(folder), "chat"
    config.model.train_new_embeddings, config.lora.rank = True, 4
    config.train.batch_size, config.train.epochs = 8, 4.0
    config.eval.batch_size, config.eval.max_new_tokens = 8, 8
    config.prompt.max_length = 256
    return config


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "eval/generations.jsonl").open()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chatml", "llama3", "gemma", "mistral", "thinking", "marked"])
def test_each_kind_of_folder_goes_from_files_to_answers_and_to_an_export(kind, recordings, tmp_path, rng, capsys):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    config = chat_config(recordings, write_llama(tmp_path / kind, chat_tokenizer(kind), rng))
    config.train.turns = "last" if kind == "thinking" else "all"
    run(config, tmp_path / "w", ["prepare", "inspect", "train", "eval", "export"])
    assert "What is the rate?" in capsys.readouterr().out
    found = load_prepared(Workdir(tmp_path / "w"))
    train = found.manifest.splits["train"]
    questions = sum(1 + n % 3 for n in range(12))
    assert (train.examples, train.sequences) == (questions, questions if kind == "thinking" else 12)
    rows = rows_of(tmp_path / "w")
    assert len(rows) == sum(1 + n % 3 for n in range(16, 20))
    histories = {row["id"]: row.get("history", []) for row in rows}
    assert histories["line 18/2"] == [["What is the rate?", ANSWERS[0]], ["Is it sinus rhythm?", ANSWERS[1]]]
    records = [str(recordings / f"records500/00000/{n:05d}_hr") for n in (17, 18)]
    asked_here = asked(config, tmp_path / "w", records, ["What is the rate?", "Why <|im_end|> </s>?"])
    assert ask_example(tmp_path / "w/export", records, ["What is the rate?", "Why <|im_end|> </s>?"]) == asked_here
    form = json.loads((tmp_path / "w/export/input.json").read_text())
    assert form["prompt"]["format"] == "chat" and form["prompt"]["system"] == config.prompt.system


@pytest.mark.slow
def test_a_qwen_3_5_is_trained_evaluated_asked_and_exported(recordings, tmp_path):
    """Packed rows through delta nets, shared prefixes of questions, LoRA, and an export that transformers reads."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = write_chat_folder("thinking", tmp_path / "qwen")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "max_position_embeddings": 512,
    }  # fmt: skip
    made = transformers.AutoConfig.for_model("qwen3_5_text", tie_word_embeddings=True, **sizes)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(tmp_path / "qwen")
    config = chat_config(recordings, tmp_path / "qwen")
    config.train.turns = "last"
    run(config, tmp_path / "w", ["prepare", "train", "eval", "attend", "export"])
    losses = [row["loss"] for row in map(json.loads, (tmp_path / "w/metrics.jsonl").open()) if "loss" in row]
    assert losses[-1] < losses[0]
    records = [str(recordings / f"records500/00000/{n:05d}_hr") for n in (17, 18)]
    asked_here = asked(config, tmp_path / "w", records, ["What is the rate?", "Which rhythm?"])
    assert ask_example(tmp_path / "w/export", records, ["What is the rate?", "Which rhythm?"]) == asked_here
    assert transformers.AutoConfig.from_pretrained(tmp_path / "w/export").model_type == "qwen3_5_text"


@pytest.mark.slow
def test_own_answers_are_the_history_of_later_questions(recordings, tmp_path, rng):
    config = chat_config(recordings, write_llama(tmp_path / "llama", chat_tokenizer("chatml"), rng))
    config.eval.history = "own"
    run(config, tmp_path / "w", ["prepare", "train", "eval"])
    rows = {row["id"]: row for row in rows_of(tmp_path / "w")}
    assert rows["line 18/2"]["history"] == [
        ["What is the rate?", rows["line 18/0"]["answer"]],
        ["Is it sinus rhythm?", rows["line 18/1"]["answer"]],
    ]
    # Killed in the middle, it goes on with the answers that are there.
    whole = (tmp_path / "w/eval/generations.jsonl").read_bytes()
    (tmp_path / "w/eval/.answers.json").unlink(missing_ok=True)
    for marker in (tmp_path / "w/eval").glob(".*.json"):
        marker.unlink()
    run(config, tmp_path / "w", ["eval"])
    assert (tmp_path / "w/eval/generations.jsonl").read_bytes() == whole
    run(config, tmp_path / "w", ["attend"])
    config.eval.max_sequences = 3
    with pytest.raises(Exception, match=r"which is not evaluated; eval\.history 'reference' expected"):
        run(config, tmp_path / "w", ["eval"])


@pytest.mark.slow
def test_the_model_before_its_training_is_evaluated_beside_it(recordings, tmp_path, rng, capsys):
    config = chat_config(recordings, write_llama(tmp_path / "llama", chat_tokenizer("chatml"), rng))
    config.optim.embedding_rate = 0.5
    config.data.questions_together = 2
    run(config, tmp_path / "w", ["prepare"])
    config.eval.checkpoint, config.eval.name = "start", "before"
    run(config, tmp_path / "w", ["eval"])  # it needs no training
    before = (tmp_path / "w/eval/before/generations.jsonl").read_bytes()
    config.eval.checkpoint, config.eval.name = "last", ""
    run(config, tmp_path / "w", ["train", "eval"])
    assert (tmp_path / "w/eval/generations.jsonl").read_bytes() != before
    config.eval.checkpoint, config.eval.name = "start", "before"
    capsys.readouterr()
    run(config, tmp_path / "w", ["eval", "report"])
    assert "nothing to do" in capsys.readouterr().out
    assert json.loads((tmp_path / "w/eval/before/results.json").read_text())["checkpoint"] == "start"
    assert "by &#39;start&#39;" in (tmp_path / "w/report-before.html").read_text()


@pytest.mark.slow
def test_turns_without_room_are_left_out_and_counted(recordings, tmp_path, rng, capsys):
    config = chat_config(recordings, write_llama(tmp_path / "llama", chat_tokenizer("chatml"), rng))
    config.prompt.max_length = 70
    config.prompt.system = ""
    config.data.max_bad_fraction = 1.0
    run(config, tmp_path / "w", ["prepare"])
    found = load_prepared(Workdir(tmp_path / "w"))
    assert found.manifest.splits["train"].turns_left_out > 0
    assert f"{found.manifest.splits['train'].turns_left_out} earlier turns left out" in " ".join(
        capsys.readouterr().out.split()
    )
    for sequence in open_split(found.shards, found.manifest, "train"):
        assert len(sequence.text) < 70 and len(sequence.history) < 3


@pytest.mark.slow
def test_a_changed_template_is_read_again_in_the_same_process(recordings, tmp_path, rng):
    folder = write_llama(tmp_path / "llama", chat_tokenizer("chatml"), rng)
    config = chat_config(recordings, folder)
    run(config, tmp_path / "w", ["prepare"])
    template = folder / "chat_template.jinja"
    template.write_text(f"{{{{ 'HELLO' }}}}{template.read_text()}")
    run(config, tmp_path / "w", ["prepare"])
    found = load_prepared(Workdir(tmp_path / "w"))
    for sequence in open_split(found.shards, found.manifest, "train"):
        assert found.text_tokenizer.decode(sequence.text.ids).startswith("HELLO")


def test_what_cannot_be_a_chat_is_refused_before_any_work(recordings, tmp_path, rng):
    config = chat_config(recordings, write_llama(tmp_path / "llama", chat_tokenizer("thinking"), rng))
    with pytest.raises(TokenizerError, match=r"train\.turns 'last' expected"):
        run(config, tmp_path / "w", ["prepare"])
    config.model.pretrained = ""
    with pytest.raises(SettingsError, match=r"prompt\.format: 'chat' found without model\.pretrained"):
        run(config, tmp_path / "w", ["prepare"])
    plain = chat_tokenizer("chatml")
    plain.chat_template = None
    config.model.pretrained = str(write_llama(tmp_path / "plain", plain, rng))
    with pytest.raises(TokenizerError, match="no chat template found"):
        run(config, tmp_path / "v", ["prepare"])
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    "messages, reason",
    [
        ([{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}], "turns of ['assistant', 'user'] found"),
        ([{"role": "user", "content": "x"}] * 2, "turns of ['user', 'user'] found"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}], "content ' ' found in turn 1"),
        ([{"role": "system", "content": "x"}, *conversation(0)], "a system turn found"),
        ("{", "not JSON"),
        ([], "fields ['question', 'answer'] are missing"),
        ({"role": "user"}, "turns of [] found"),
        ([{"role": "user", "content": 5}, {"role": "assistant", "content": "y"}], "content 5 found in turn 0"),
    ],
)
def test_a_conversation_that_cannot_be_used_is_set_aside(recordings, tmp_path, messages, reason):
    from ecgbyte_jax.corpora.example import Rejected
    from ecgbyte_jax.corpora.own import read_table

    row = {"record": "a", "patient": "p", "messages": messages}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    (bad,) = read_table(tmp_path / "t.jsonl", tmp_path)
    assert isinstance(bad, Rejected) and reason in bad.reason
