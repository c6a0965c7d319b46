"""Runs of models that read vectors of an ECG in place of its tokens, from the shards to answers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from ecgbyte_jax.asking.worth import Worth
from ecgbyte_jax.errors import CheckpointError, ConfigError, ExampleError
from ecgbyte_jax.evaluate.answers import OWN, Answerer
from ecgbyte_jax.evaluate.questions import Item, choose, find_sequences
from ecgbyte_jax.explain.views import METHODS, file_stem
from ecgbyte_jax.inputs.controls import open_shown, vector_lengths
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.prompt import render, render_prompt
from ecgbyte_jax.inputs.recording import read_recording
from ecgbyte_jax.pretrain.pretrain import pretrain
from ecgbyte_jax.report.folder import choose_examples
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages.ask import ask
from ecgbyte_jax.stages.attend import attend
from ecgbyte_jax.stages.eval import evaluate
from ecgbyte_jax.stages.export import export
from ecgbyte_jax.stages.inquiry import Inquiry
from ecgbyte_jax.stages.pipeline import run
from ecgbyte_jax.stages.prepare import prepare
from ecgbyte_jax.stages.report import report
from ecgbyte_jax.stages.train import train
from ecgbyte_jax.train import feed
from tests.small import small_config
from tests.stages.asked import ask_example, asked

SPANS = 4


def vector_config(kind: str = "elf_patch", **more) -> ConfigDict:
    """4 steps of the small demo's model on vectors."""
    config = small_config()
    config.ecg_input.kind, config.ecg_input.vectors = kind, SPANS if kind == "elf_patch" else 1
    config.encoder.kind, config.encoder.size = "mlae", "tiny"
    config.pretrain.batch_size, config.pretrain.epochs = 16, 1.0
    config.eval.max_sequences = 16
    config.update_from_flattened_dict(more)
    return config


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory) -> Workdir:
    """A run that was trained and evaluated on spans of the signals."""
    workdir = Workdir(tmp_path_factory.mktemp("vectors") / "w")
    shutil.copytree(prepared, workdir.root)
    train(Settings.of(vector_config()), workdir)
    evaluate(Settings.of(vector_config()), workdir)
    return workdir


def losses(workdir: Workdir) -> list[float]:
    return [json.loads(line)["loss"] for line in workdir.metrics.open()]


def generations(workdir: Workdir) -> list[dict]:
    return [json.loads(line) for line in workdir.generations.open()]


def test_training_sees_vectors_instead_of_tokens_and_its_ledger_counts_them(trained):
    first, last = (line["valid_loss"] for line in map(json.loads, trained.metrics.open()) if "valid_loss" in line)
    assert last < first
    seen = json.loads(trained.cost.read_text())["train"]["seen"]
    assert seen["tokens"]["ecg"] == SPANS * seen["sequences"]
    assert seen["ecg_input_flops"] > 0
    assert len(generations(trained)) == 16 and json.loads(trained.results.read_text())["ecg"] == "own"


def test_killed_and_resumed_it_gives_the_same_bits(trained, prepared, tmp_path, monkeypatch):
    workdir = Workdir(tmp_path / "w")
    shutil.copytree(prepared, workdir.root)
    shutil.copytree(trained.signals, workdir.signals)
    with monkeypatch.context() as patch:
        put, calls = feed.put_batch, iter(range(100))
        patch.setattr(feed, "put_batch", lambda *a: put(*a) if next(calls) < 6 else pytest.fail("killed", pytrace=False))
        with pytest.raises(pytest.fail.Exception):
            train(Settings.of(vector_config()), workdir)
    train(Settings.of(vector_config()), workdir)
    assert losses(workdir) == losses(trained)
    assert json.loads(workdir.train_marker.read_text())["result"] == json.loads(trained.train_marker.read_text())["result"]


def test_the_same_recording_is_answered_by_ask_as_by_the_evaluation(trained):
    row, found, signal = generations(trained)[0], {}, Settings.of(vector_config()).signal
    sequence = find_sequences(trained, "test", [row])[row["id"], row["segment"]]
    tokens = load_prepared(trained).ecg_tokenizer
    for path in (trained.synthetic / "ptbxl").rglob("*_hr.hea"):
        segment = read_recording(str(path), signal, signal.segment_length).segments[row["segment"]]
        found[tokens.encode(segment).tobytes()] = path
    record = found[sequence.ecgs[0].tobytes()]
    (answers,) = asked(vector_config(), trained.root, [str(record.with_suffix(""))], [row["question"]])
    assert answers == [row["answer"]]


@pytest.mark.parametrize("shown", ["zeros", "none", "shuffled"])
def test_it_can_be_asked_with_other_ecgs_and_without_any(trained, shown):
    config = vector_config(**{"eval.ecg": shown, "eval.name": shown})
    workdir = Workdir(trained.root, shown)
    evaluate(Settings.of(config), workdir)
    of_question = {}
    for row in generations(workdir):
        of_question.setdefault(row["question"], set()).add(round(row["log_prob"], 4))
    if shown in ("zeros", "none"):  # the same for all patients
        assert {len(found) for found in of_question.values()} == {1}
    else:
        assert max(len(found) for found in of_question.values()) > 1


@pytest.mark.parametrize("shown, vectors", [("own", SPANS), ("shuffled", SPANS), ("zeros", SPANS), ("none", 0)])
def test_what_is_shown_takes_as_many_places_as_were_planned(trained, shown, vectors):
    opened = load_prepared(trained, SPANS)
    sequences, planned = open_shown(opened, "train", shown, 100, 0), vector_lengths(opened, "train", shown, 256)
    for number in range(4):
        ids, mask = render(opened.ids, sequences[number].text, sequences[number].ecgs, 256)
        assert np.count_nonzero(ids == opened.ids.place) == vectors
        assert (len(ids), mask.sum()) == tuple(planned[number])
        assert sequences[number].ecgs[0].shape == (12, 100 if vectors else 0)
    assert (np.abs(sequences[0].ecgs[0]).sum() > 0) == (shown in ("own", "shuffled"))


@pytest.mark.slow
def test_packed_rows_train_on_vectors_too(trained, tmp_path, capsys):
    shutil.copytree(trained.root, tmp_path / "w")
    config = vector_config(**{"data.packing": True, "train.epochs": 2.0})
    train(Settings.of(config), Workdir(tmp_path / "w"))
    assert np.isfinite(losses(Workdir(tmp_path / "w"))).all()
    assert "no validation, 16 sequences in 2 rows and 1.0 epochs found for train.batch_size 8" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind, train_encoder, rank", [("mlae", False, 0), ("clip", True, 0), ("vit", False, 4)])
def test_a_pretrained_encoder_is_read_again_wherever_its_run_is(trained, tmp_path, kind, train_encoder, rank):
    """Trained here or elsewhere, frozen or not, an evaluation has the model that was trained."""
    shutil.copytree(trained.root, tmp_path / "w")
    workdir, answers = Workdir(tmp_path / "w"), []
    more = {"ecg_input.train_encoder": train_encoder, "lora.rank": rank, "encoder.pretrained": "", "encoder.kind": kind}
    pretrain(Settings.of(vector_config("encoder", **more)), workdir)
    shutil.copytree(workdir.root, tmp_path / "elsewhere")
    for place in ("", str(tmp_path / "elsewhere"), "random"):
        config = vector_config("encoder", **(more | {"encoder.pretrained": place}))
        train(Settings.of(config), workdir)
        evaluate(Settings.of(config), workdir)
        answers.append([row["log_prob"] for row in generations(workdir)])
    assert answers[0] == answers[1] != answers[2]


def test_an_encoder_that_is_not_there_is_refused(trained):
    with pytest.raises(ConfigError, match=r"no encoder has finished its training there, which ecg_input\.kind 'encoder' needs"):
        train(Settings.of(vector_config("encoder")), trained)


@pytest.mark.slow
def test_an_encoder_that_was_trained_with_other_settings_is_refused(trained, tmp_path):
    elsewhere = Workdir(tmp_path / "e")
    shutil.copytree(trained.root, elsewhere.root)
    pretrain(Settings.of(vector_config("encoder")), elsewhere)
    config = vector_config("encoder", **{"encoder.kind": "mtae", "encoder.pretrained": str(elsewhere.root)})
    with pytest.raises(ConfigError, match=r"encoder\.kind: 'mtae' found, 'mlae' expected, with which the encoder in .* was"):
        train(Settings.of(config), trained)


def test_vectors_that_do_not_fit_the_prompt_are_refused_before_training(trained):
    config = vector_config(**{"ecg_input.vectors": 100, "prompt.max_length": 110})
    with pytest.raises(ExampleError, match=r"prompt\.max_length: 110 found, \d+ expected .* ecg_input\.vectors 100 for"):
        feed.plan_batches(Settings.of(config), load_prepared(trained, 100), "train", 1.0)


def test_vectors_that_cannot_be_made_are_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match=r"ecg_input\.vectors: 7 found, a divisor of signal\.segment_length = 100 expected"):
        Settings.of(vector_config(**{"ecg_input.vectors": 7}))


def test_questions_about_an_ecg_share_its_signal_in_memory(trained):
    ecgs = [ecg for item in choose(Settings.of(vector_config()), load_prepared(trained, SPANS)) for ecg in item.sequence.ecgs]
    assert len({id(ecg) for ecg in ecgs}) == len({ecg.tobytes() for ecg in ecgs}) < len(ecgs)


def test_turns_that_leave_vectors_no_room_are_left_out_and_too_long_a_question_is_refused(trained):
    settings, prepared = Settings.of(vector_config()), load_prepared(trained, SPANS)
    item = choose(settings, prepared)[0]
    sequence = replace(item.sequence, previous="earlier")
    free = settings.prompt.max_length - 1 - len(sequence.prompt)  # for the ECG's vectors and earlier turns
    anything: Any = None
    answerer = Answerer(settings, prepared, anything, anything, anything)
    for answer in range(free - 2 * SPANS, free + 1):  # tokens of the earlier turn, about
        told: Any = SimpleNamespace(before=lambda *_, answer=answer: (("?", "!" * answer),))
        prompt, turns = answerer.ask(Item(sequence, item.other, 0), OWN, 0, told)
        assert len(render_prompt(prepared.ids, prompt, sequence.ecgs, settings.prompt.max_length)) == len(prompt) + SPANS
    assert not turns
    path = str(next((trained.synthetic / "ptbxl").rglob("*_hr.hea")).with_suffix(""))
    with pytest.raises(ConfigError, match=rf"--question: its texts take .* 1 ECG of ecg_input\.vectors {SPANS}; ask a shorter"):
        asked(vector_config(), trained.root, [path], ["!" * (settings.prompt.max_length - 7)])


def test_the_attention_of_answers_is_drawn_over_the_spans_that_were_read(trained, tmp_path):
    row = generations(trained)[0]
    attend(Settings.of(vector_config(**{"attend.examples": (row["id"],)})), trained)
    sequence = find_sequences(trained, "test", [row], signals=True)[row["id"], row["segment"]]
    file = trained.attention / f"{file_stem(row)}.npz"
    with np.load(file) as view:
        np.testing.assert_array_equal(view["signal"], sequence.ecgs[0])
        for name in METHODS:
            weights = np.repeat(view[f"tokens_{name}"], 100 // SPANS) / (12 * 100 // SPANS)
            np.testing.assert_allclose(view[name], np.broadcast_to(weights, (12, 100)), rtol=1e-5, atol=1e-9)
        assert len(view["tokens_attention"]) == SPANS and view["seen"].all()
    assert file.with_suffix(".png").stat().st_size > 10_000
    record, drawn = str(next((trained.synthetic / "ptbxl").rglob("*_hr.hea")).with_suffix("")), tmp_path / "p.png"
    ask(Settings.of(vector_config()), trained, Inquiry((record,), ("Which rhythm is this?",), picture=str(drawn)))
    assert drawn.stat().st_size > 10_000


def test_a_map_of_one_vector_and_a_folder_without_a_map_are_refused_in_one_line(trained, tmp_path):
    settings = Settings.of(vector_config("elf_base"))
    message = r": not for a model of ecg_input\.kind 'elf_base' with one vector, which stands for all samples of an ECG alike"
    with pytest.raises(ConfigError, match=f"--stage=attend{message}"):
        attend(settings, trained)
    with pytest.raises(ConfigError, match=f"--picture{message}"):
        ask(settings, trained, Inquiry(("a.npy",), ("Why?",), picture=str(tmp_path / "p.png")))
    with pytest.raises(
        CheckpointError, match=r"no ecg_input there, the map from signals to vectors, with ecg_input\.kind 'elf_"
    ):
        config = vector_config(**{"eval.checkpoint": str(tmp_path), "eval.name": "folder"})
        evaluate(Settings.of(config), Workdir(trained.root, "folder"))


def test_a_report_draws_the_attention_and_says_what_the_vectors_stand_for(trained, monkeypatch):
    monkeypatch.setattr("ecgbyte_jax.stages.report.choose_examples", lambda *given: choose_examples(*given)[:1])
    report(Settings.of(vector_config()), trained)
    page = trained.report.read_text()
    assert "Each of 4 vectors is a linear map of 25 samples of all leads." in page and "show the attention" in page
    assert "to read them as vectors of their signals" in page and "Without attention" not in page
    assert "The tokenizer cuts at" not in page


def answers_of(folder: Path, workdir: Workdir, name: str, **more) -> list[tuple]:
    """Of an evaluation of the model in a folder."""
    named = Workdir(workdir.root, name)
    evaluate(Settings.of(vector_config(**{"eval.checkpoint": str(folder), "eval.name": name} | more)), named)
    return [(row["answer"], round(row["log_prob"], 4)) for row in generations(named)]


def test_an_export_is_read_back_with_its_map_under_the_same_settings_alone(trained, monkeypatch):
    settings = Settings.of(vector_config())
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr("ecgbyte_jax.stages.export.write_card", lambda *_: (_ for _ in ()).throw(OSError("full")))
        export(settings, trained)
    assert not trained.export.exists()
    export(settings, trained)
    expected = [(row["answer"], round(row["log_prob"], 4)) for row in generations(trained)]
    assert answers_of(trained.export, trained, "exported") == expected
    with pytest.raises(
        ConfigError, match=r"export/ecg_input: ecg_input\.vectors 4 found, 5 in the settings; the settings that"
    ):
        answers_of(trained.export, trained, "others", **{"ecg_input.vectors": 5})
    with pytest.raises(
        ConfigError, match=r"export/ecg_input: ecg_input\.kind 'elf_patch' found, 'tokens' in the settings; the"
    ):
        answers_of(trained.export, trained, "tokens", **{"ecg_input.kind": "tokens", "ecg_input.vectors": 1})
    before = answers_marker(trained, "exported")
    tensors = load_file(trained.export / "ecg_input/model.safetensors")
    save_file({name: 2 * array for name, array in tensors.items()}, trained.export / "ecg_input/model.safetensors")
    assert answers_of(trained.export, trained, "exported") != expected and answers_marker(trained, "exported") != before


def answers_marker(workdir: Workdir, name: str) -> str:
    return json.loads(Workdir(workdir.root, name).answers_marker.read_text())["inputs"]


@pytest.mark.slow
def test_an_export_s_example_and_a_run_that_begins_with_it_answer_as_ask_does(prepared, tmp_path):
    """Of an encoder behind LoRA; `test_pretrained.py` has the example of an adapter with spans."""
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    workdir, again = Workdir(tmp_path / "w"), Workdir(tmp_path / "again")
    more = {"encoder.pretrained": "random", "encoder.kind": "merl", "ecg_input.connector": "query", "ecg_input.vectors": 3}
    config = vector_config("encoder", **{"lora.rank": 4} | more)
    shutil.copytree(prepared, workdir.root)
    train(Settings.of(config), workdir)
    evaluate(Settings.of(config), workdir)
    export(Settings.of(config), workdir)
    records = [str(path.with_suffix("")) for path in sorted((workdir.synthetic / "ptbxl").rglob("*_hr.hea"))[::20]]
    expected = asked(config, workdir.root, records, ["Which rhythm is this?"])
    assert ask_example(workdir.export, records, ["Which rhythm is this?"], without=("ecgbyte_jax",)) == expected
    config.model.pretrained, config.encoder.pretrained, config.eval.checkpoint = str(workdir.export), "", "start"
    prepare(Settings.of(config), again)
    evaluate(Settings.of(config), again)
    found, there = ([(row["id"], row["answer"]) for row in generations(folder)] for folder in (again, workdir))
    assert found == there
    config.ecg_input.vectors = 2
    with pytest.raises(ConfigError, match=r"ecg_input\.vectors 3 found, 2 in the settings"):
        run(config, tmp_path / "more", ["prepare"])
    config.ecg_input.vectors, config.encoder.pretrained = 3, "random"
    with pytest.raises(ConfigError, match=r"encoder\.pretrained: 'random' found, '' expected: model\.pretrained"):
        run(config, tmp_path / "more", ["prepare"])


def test_a_control_s_answers_come_with_a_warning(trained):
    settings = Settings.of(vector_config())
    assert not [text for text in Worth.of(settings, trained).warnings if "control" in text]
    (warning, *_) = Worth.of(Settings.of(vector_config(**{"data.ecg": "zeros"})), trained).warnings
    assert warning == "it is a control, trained with zeros in place of each question's ECG (data.ecg)"


def test_perturbed_signals_are_asked_with(trained):
    config = vector_config(**{"eval.perturb": ("noise", "dropout"), "eval.name": "faults"})
    evaluate(Settings.of(config), Workdir(trained.root, "faults"))
    assert set(json.loads(Workdir(trained.root, "faults").results.read_text())["perturbed"]) == {"noise", "dropout"}
    row = generations(Workdir(trained.root, "faults"))[0]
    assert np.isfinite(row["log_prob"])
