"""Label scores of a run: from the shards to results, with a model before its training."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ecgbyte_jax.corpora.labels.questions import Labelled, ask
from ecgbyte_jax.errors import ConfigError, SettingsError
from ecgbyte_jax.evaluate.labels import candidates, probabilities
from ecgbyte_jax.evaluate.questions import Item
from ecgbyte_jax.evaluate.results import SCORES
from ecgbyte_jax.inputs.chat import Chat
from ecgbyte_jax.inputs.prompt import Dialogue, Text
from ecgbyte_jax.inputs.shards import Sequence
from ecgbyte_jax.inputs.text import add_ecg_tokens
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import EvalSettings, Settings
from ecgbyte_jax.stages import eval as stage
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.eval import evaluate
from tests.chat_folders import chat_tokenizer
from tests.small import small_config

pytest.importorskip("sklearn")


def label_settings(**more) -> Settings:
    config = small_config()
    config.eval.checkpoint, config.eval.labels = "start", 8
    config.update_from_flattened_dict(more)
    return Settings.of(config)


@pytest.fixture(scope="module")
def evaluated(prepared, tmp_path_factory) -> Workdir:
    """A run that was evaluated without label scores, and then with them."""
    workdir = Workdir(tmp_path_factory.mktemp("labels") / "w")
    shutil.copytree(prepared, workdir.root)
    evaluate(label_settings(**{"eval.labels": 0}), workdir)
    before = workdir.generations.stat()
    evaluate(label_settings(), workdir)
    assert workdir.generations.stat() == before  # answers are kept
    return workdir


def lines(workdir: Workdir) -> list[dict]:
    return [json.loads(line) for line in workdir.probabilities.open()]


def scores_of(results: dict) -> set[str]:
    """The names of all scores in results."""
    systems = [results["scores"], results["by_recording"]["scores"], results["by_recording"]["yes_no"]["systems"]]
    names = {name for part in [*systems, results["labels"]["scores"]] for row in part.values() for name in row}
    return names | ({"macro_f1"} if "macro_f1" in results else set())


def test_every_candidate_of_every_question_has_a_probability_and_the_results_have_their_scores(evaluated):
    found, results = lines(evaluated), json.loads(evaluated.results.read_text())
    assert {row["split"] for row in found} == {"test", "valid"}
    assert all(("log_probs_to_other_ecg" in row) == (row["split"] == "test") for row in found)
    assert all(len(row["candidates"]) == len(row["log_probs"]) and max(row["log_probs"]) < 0 for row in found)
    asked: dict[tuple, list[str]] = {}
    for row in found:
        asked.setdefault((row["split"], row["id"], row["segment"], row["question"]), []).extend(row["candidates"])
    assert len(asked) == 16 + 16 and all(row == sorted(row) and len(row) >= 2 for row in asked.values())
    labels = results["labels"]
    assert labels["answers"] == 16 and labels["questions"] == 4
    assert sum(row["answers"] for row in labels["calibration"]) == 16
    assert all(0 <= label["scores"]["model"]["auroc"] <= 1 for label in labels["by_label"])
    assert scores_of(results) <= SCORES.keys()


def test_killed_and_resumed_it_gives_the_same_file(evaluated, tmp_path, monkeypatch):
    workdir = Workdir(tmp_path / "w")
    shutil.copytree(evaluated.root, workdir.root)
    whole, results = workdir.probabilities.read_bytes(), workdir.results.read_bytes()
    workdir.probabilities.write_bytes(whole[: len(whole) // 2])
    batches, compute = [], probabilities._lines
    monkeypatch.setattr(probabilities, "_lines", lambda *a: batches.append(a) or compute(*a))
    monkeypatch.setattr(stage, "_answer", lambda *_: pytest.fail("answered again"))
    evaluate(label_settings(), workdir)
    assert workdir.probabilities.read_bytes() == whole and workdir.results.read_bytes() == results
    assert 0 < len(batches) < len(lines(workdir)) / 8


def test_another_version_of_a_score_scores_again_and_asks_for_nothing(evaluated, monkeypatch):
    answers = lineage.answered(label_settings(), evaluated)
    assert lineage.scored(label_settings(), evaluated, answers).finished()
    monkeypatch.setitem(SCORES, "auroc", 2)
    assert not lineage.scored(label_settings(), evaluated, answers).finished()
    assert lineage.labelled(label_settings(), evaluated, answers).finished()


def test_a_corpus_without_such_questions_is_refused(evaluated, tmp_path, monkeypatch):
    workdir = Workdir(tmp_path / "w")
    shutil.copytree(evaluated.root, workdir.root)
    monkeypatch.setattr(candidates, "_candidates", lambda *_: ({}, {}))
    with pytest.raises(ConfigError, match=r"eval.labels: no question of split 'test' is asked in training too and has 2 to 2"):
        evaluate(label_settings(**{"eval.labels": 2}), workdir)


def test_one_candidate_and_one_s_own_history_are_refused():
    with pytest.raises(SettingsError, match="labels: 1 found, 0, or 2 or more expected"):
        EvalSettings(labels=1)
    with pytest.raises(SettingsError, match="labels: 8 found with history 'own', 'reference' expected"):
        EvalSettings(labels=8, history="own")


def test_every_label_of_a_whole_set_is_asked_of_every_recording(monkeypatch):
    recordings = [Labelled(f"A{n}", f"A{n}", "test", None, labels) for n, labels in enumerate([("AF",), ("AF", "PAC"), ()])]
    form = SimpleNamespace(
        texts=lambda dialogues: [Text(np.array([len(d.turns[0][0])]), np.ones(1, bool), 1) for d in dialogues]
    )
    outlines, text = [], Text(np.zeros(1, np.int32), np.zeros(1, bool), 1)
    for example in ask(recordings, ("single-verify", "single-query")):
        number = np.array(int(example.patient[1:]))
        outlines.append(
            Sequence(example.id, example.patient, 0, example.question, example.answer, example.meta, (number,), text)
        )
    monkeypatch.setattr(candidates, "outlines_of", lambda *_: outlines)
    prepared = SimpleNamespace(shards=None, manifest=None, form=form)
    labels = [f"Does this ECG show {name}?" for name in ("AF", "PAC")]
    # One question about each recording was drawn.
    items = [Item(outlines[place], outlines[0], place) for place in (0, 4, len(outlines) - 1)]
    assert [item.sequence.patient for item in items] == ["A0", "A1", "A2"]
    found = [item.sequence for item in candidates._ask_all(items, {"": labels}, prepared, "test")]
    asked = {(sequence.id, sequence.answer) for sequence in found if sequence.question in labels}
    truth = {("A0", "AF"), ("A1", "AF"), ("A1", "PAC")}
    expected = {(n, name) for n in ("A0", "A1", "A2") for name in ("AF", "PAC")}
    assert asked == {(f"{n}/Does this ECG show {name}?", "yes" if (n, name) in truth else "no") for n, name in expected}


def test_prompts_leave_room_for_the_longest_candidate(monkeypatch):
    text = Text(np.zeros(3, np.int32), np.zeros(3, bool), 3)
    sequence = Sequence("a", "p", 0, "Which?", "long", {}, (np.zeros(3, np.int32),), text)
    asked = [candidates.Asked("test", Item(sequence, sequence, 0), ("long", "no"))]
    monkeypatch.setattr(probabilities, "_tokens", lambda *_: {(1, "Which?"): [np.zeros(9, np.int32), np.zeros(2, np.int32)]})
    monkeypatch.setattr(probabilities, "batch_parts", lambda _: 1)
    for positions, length in ((106, 98), (128, 100)):
        model = SimpleNamespace(config=SimpleNamespace(max_positions=positions))
        settings = label_settings(**{"prompt.max_length": 100})
        (batch,) = probabilities._in_batches(SimpleNamespace(settings=settings, prepared=None, model=model, mesh=None), asked)
        assert batch.max_length == length


def test_in_a_mixture_labels_are_asked_of_the_recordings_of_their_own_corpus(monkeypatch):
    finding, text = {"question_type": "single-verify", "attribute_type": "finding"}, Text(np.ones(1), np.ones(1, bool), 1)
    form, outlines = SimpleNamespace(texts=lambda dialogues: [text for _ in dialogues]), []
    prepared = SimpleNamespace(shards=None, manifest=None, form=form)
    said = [("ptbxl_labels", 0, "AF?", "yes"), ("cpsc", 1, "PAC?", "yes")]
    said += [("ecg_qa", 0, "AF?", "no"), ("ecg_qa", 0, "PAC?", "no")]
    for number, (part, ecg, question, answer) in enumerate(said):
        meta = finding | {"mixture_part": part}
        outlines.append(Sequence(f"{part}:{number}", f"{ecg}", 0, question, answer, meta, (np.array(ecg),), None))
    monkeypatch.setattr(candidates, "outlines_of", lambda *_: outlines)
    monkeypatch.setattr(candidates, "open_outlines", lambda *_: outlines)
    few, labels = candidates._candidates(prepared, 2, {"ptbxl_labels", "cpsc"})
    assert labels == {"ptbxl_labels": ["AF?"], "cpsc": ["PAC?"]} and few["AF?"] == ("no", "yes")
    items = [Item(outline, outline, place) for place, outline in enumerate(outlines)]
    asked = [item.sequence for item in candidates._ask_all(items, labels, prepared, "test")]
    assert [(one.question, one.answer) for one in asked] == [("AF?", "yes"), ("PAC?", "yes"), ("AF?", "no"), ("PAC?", "no")]


@pytest.mark.parametrize("kind", ["chatml", "llama3"])
def test_a_chat_s_candidates_end_as_its_answers_do(kind):
    tokenizer = chat_tokenizer(kind)
    add_ecg_tokens(tokenizer, 5)
    chat = Chat.of(tokenizer, "Read it.")
    sequence = Sequence("a", "p", 0, "Fast?", "yes", {}, (np.zeros(3, np.int32),), None)
    text = replace(sequence, text=chat.texts([Dialogue(1, (("Fast?", "yes"),))])[0]).text
    asked = candidates.Asked("test", Item(replace(sequence, text=text), sequence, 0), ("no", "yes"))
    (tokens,) = probabilities._tokens(SimpleNamespace(form=chat), [asked]).values()
    np.testing.assert_array_equal(tokens[1], text.ids[text.prompt :][text.answers[text.prompt :]])
    assert tokens[1][-1] in chat.stops and tokens[0].tolist() != tokens[1].tolist()
