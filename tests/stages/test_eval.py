import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import CheckpointError, ConfigError, ScoresError
from ecgbyte_jax.evaluate import answers, questions
from ecgbyte_jax.evaluate.metrics import Scorers, macro_f1, score
from ecgbyte_jax.evaluate.questions import choose, in_batches
from ecgbyte_jax.evaluate.results import make_results
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import eval as stage
from ecgbyte_jax.stages.eval import evaluate
from ecgbyte_jax.stages.export import export
from ecgbyte_jax.stages.train import train
from tests.small import small_config


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory):
    """A work directory in which `small_config()` was trained and evaluated."""
    workdir = tmp_path_factory.mktemp("trained") / "w"
    shutil.copytree(prepared, workdir)
    train(Settings.of(small_config()), Workdir(workdir))
    evaluate(Settings.of(small_config()), Workdir(workdir))
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the test's own, not evaluated."""
    shutil.copytree(trained, tmp_path / "w", ignore=shutil.ignore_patterns("eval"))
    return tmp_path / "w"


def rows(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "eval/generations.jsonl").open(encoding="utf-8")]


def results(workdir) -> dict:
    return json.loads((workdir / "eval/results.json").read_text(encoding="utf-8"))


def files(workdir) -> dict[str, bytes]:
    return {name: (workdir / "eval" / name).read_bytes() for name in ("generations.jsonl", "results.json")}


def drawn(config):
    """Three seeds of answers that are drawn."""
    config.eval.temperature, config.eval.top_p, config.eval.seeds = 1.5, 0.95, (0, 42, 123)
    return config


class KilledError(Exception):
    pass


def test_a_line_holds_what_was_asked_and_answered(trained):
    found = rows(trained)
    assert len(found) == 16 and len({(row["id"], row["segment"]) for row in found}) == 16
    for row in found:
        assert set(row) == {
            "id", "segment", "seed", "patient", "question", "reference", "answer", "log_prob", "tokens",
            "answer_to_other_ecg", "log_prob_to_other_ecg", "other_ecg", "other_segment", "commonest_answer", "meta",
        }  # fmt: skip
        assert row["seed"] == 0 and row["log_prob"] < 0 and 1 <= len(row["tokens"]) <= 8
        assert row["meta"]["question_type"].startswith("single-") and row["meta"]["attribute_type"] == "scp_code"
    patients = {row["id"]: row["patient"] for row in found}
    assert all(patients[row["other_ecg"]] != row["patient"] for row in found)


def test_results_hold_scores_with_intervals_beside_the_baselines(trained):
    found, lines = results(trained), rows(trained)
    assert found["split"] == "test" and found["checkpoint"] == "last" and found["checkpoint_step"] == 8
    assert found["sequences"] == 16 and found["patients"] == 2 and found["seeds"] == [0] and "over_seeds" not in found
    references, scorers = [line["reference"] for line in lines], Scorers.load()
    for system, field in (
        ("model", "answer"),
        ("another patient's ECG", "answer_to_other_ecg"),
        ("commonest answer", "commonest_answer"),
    ):
        assert found["scores"][system] == pytest.approx(score(references, [line[field] for line in lines], scorers))
        low, high = found["intervals"][system]["exact_match"]
        assert 0 <= low <= found["scores"][system]["exact_match"] <= high <= 1
    kinds = found["by_question_type"]
    assert {kind: part["sequences"] for kind, part in kinds.items()} == {
        "single-choose": 8, "single-query": 4, "single-verify": 4,
    }  # fmt: skip
    some = [line for line in lines if line["meta"]["question_type"] == "single-query"]
    expected = score([line["reference"] for line in some], [line["commonest_answer"] for line in some], scorers)
    assert found["by_question_type_baselines"]["single-query"]["commonest answer"] == pytest.approx(expected)
    assert found["by_attribute_type"]["scp_code"]["exact_match"] == pytest.approx(found["scores"]["model"]["exact_match"])
    assert found["by_attribute_type_intervals"]["scp_code"] == found["intervals"]["model"] and found["by_attribute"] == {}
    closed = [line for line in lines if line["meta"]["question_type"] != "single-query"]
    expected = macro_f1([line["reference"] for line in closed], [line["answer"] for line in closed])
    assert found["macro_f1"]["model"] == pytest.approx(expected)
    assert found["empty_answers"] == sum(not line["answer"] for line in lines)


def test_several_seeds_draw_other_answers_and_give_mean_and_interval(config, workdir):
    evaluate(Settings.of(drawn(config)), Workdir(workdir))
    found, lines = results(workdir), rows(workdir)
    assert len(lines) == 48 and found["sequences"] == 16 and found["seeds"] == [0, 42, 123]
    by_seed = [[line["answer"] for line in lines if line["seed"] == seed] for seed in (0, 42, 123)]
    assert by_seed[0] != by_seed[1] != by_seed[2]
    references = [line["reference"] for line in lines[:16]]
    values = [score(references, texts)["rouge_1"] for texts in by_seed]
    assert found["over_seeds"]["model"]["rouge_1"]["mean"] == pytest.approx(np.mean(values))
    assert found["over_seeds"]["model"]["rouge_1"]["std"] == pytest.approx(np.std(values, ddof=1))
    assert found["scores"]["model"]["rouge_1"] == pytest.approx(np.mean(values))


@pytest.mark.slow
def test_a_row_s_draws_do_not_depend_on_its_batch(config, workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "other")
    evaluate(Settings.of(drawn(config)), Workdir(workdir))
    config.eval.batch_size, config.eval.seeds = 16, (42,)
    evaluate(Settings.of(config), Workdir(tmp_path / "other"))
    tokens = [{(r["id"], r["segment"]): r["tokens"] for r in rows(w) if r["seed"] == 42} for w in (workdir, tmp_path / "other")]
    assert tokens[0] == tokens[1]


@pytest.mark.slow
def test_questions_that_share_an_ecg_are_answered_as_alone(config, workdir, trained):
    config.eval.batch_size = 32  # of which each of 8 devices has 4
    items = choose(Settings.of(config), load_prepared(Workdir(workdir)))
    assert [batch.each for batch in in_batches(items, 32, parts=8)] == [4]
    assert {batch.each for batch in in_batches(items, 8, parts=8)} == {1}
    evaluate(Settings.of(config), Workdir(workdir))
    for together, alone in zip(rows(workdir), rows(trained), strict=True):
        for name in ("log_prob", "log_prob_to_other_ecg"):
            assert together.pop(name) == pytest.approx(alone.pop(name), abs=2e-3)
        assert together == alone


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_it_gives_the_same_files(config, workdir, tmp_path, monkeypatch):
    config = drawn(config)
    shutil.copytree(workdir, tmp_path / "whole")
    evaluate(Settings.of(config), Workdir(tmp_path / "whole"))
    rng, append, generations, calls = random.Random(0), answers.append, workdir / "eval/generations.jsonl", []

    def die_at_the_second(path, lines):
        """The second write of a run is cut anywhere."""
        append(path, lines)
        calls.append(path)
        if len(calls) % 2 == 0:
            with path.open("ab") as file:
                file.truncate(path.stat().st_size - rng.randint(0, 2000))
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(answers, "append", die_at_the_second)
        for _ in range(3):
            with pytest.raises(KilledError):
                evaluate(Settings.of(config), Workdir(workdir))
    assert generations.is_file()
    evaluate(Settings.of(config), Workdir(workdir))
    assert files(workdir) == files(tmp_path / "whole")


@pytest.mark.parametrize("kept, again", [(-1, 1), (-5, 1), (100, 2)])
def test_a_file_cut_short_is_completed_and_nothing_else_is_done_again(config, workdir, trained, monkeypatch, kept, again):
    evaluate(Settings.of(config), Workdir(workdir))
    path = workdir / "eval/generations.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    batches, answer = [], answers.Answerer.rows
    monkeypatch.setattr(answers.Answerer, "rows", lambda *a: batches.append(a[1]) or answer(*a))
    evaluate(Settings.of(config), Workdir(workdir))
    assert files(workdir) == files(trained) and [len(batch.items) for batch in batches] == [8] * again


def test_a_line_that_is_no_line_is_named_and_stays(config, workdir):
    evaluate(Settings.of(config), Workdir(workdir))
    path = workdir / "eval/generations.jsonl"
    bad = path.read_bytes().replace(b'"reference"', b'"refrence"', 1)
    path.write_bytes(bad)
    with pytest.raises(ScoresError, match=r"generations\.jsonl: line 1 is damaged .*'reference'.* move the file away"):
        evaluate(Settings.of(config), Workdir(workdir))
    assert path.read_bytes() == bad


def test_other_settings_of_the_answers_move_them_aside(config, workdir, capsys):
    evaluate(Settings.of(config), Workdir(workdir))
    before = files(workdir)
    config.eval.max_new_tokens = 8
    config.eval.max_sequences = 12
    evaluate(Settings.of(config), Workdir(workdir))
    assert "eval.max_sequences: 0 -> 12" in capsys.readouterr().out
    assert {name: (workdir / "eval.old-1" / name).read_bytes() for name in before} == before
    assert len(rows(workdir)) == 12 == results(workdir)["sequences"]


def test_other_settings_of_the_scores_keep_the_answers(config, workdir, monkeypatch):
    evaluate(Settings.of(config), Workdir(workdir))
    before, resamples = files(workdir), []
    monkeypatch.setattr(stage, "_answer", lambda *_: pytest.fail("answered again"))
    monkeypatch.setattr(stage, "make_results", lambda *a: resamples.append(a[2]) or make_results(*a))
    config.eval.bootstrap = 100
    evaluate(Settings.of(config), Workdir(workdir))
    evaluate(Settings.of(config), Workdir(workdir))
    assert files(workdir)["generations.jsonl"] == before["generations.jsonl"] and resamples == [100]


def test_perturbed_signals_are_asked_the_same_and_scored(config, workdir, trained):
    config.eval.perturb = ("noise", "blackout")
    evaluate(Settings.of(config), Workdir(workdir))
    lines = rows(workdir)
    assert [line["answer"] for line in lines] == [line["answer"] for line in rows(trained)]
    assert all(set(line["answers_perturbed"]) == {"noise", "blackout"} for line in lines)
    references, texts = zip(*((line["reference"], line["answers_perturbed"]["noise"]) for line in lines))
    expected = score(list(references), list(texts), Scorers.load())
    found = results(workdir)
    assert found["perturbed"]["noise"] == pytest.approx(expected)
    for name, drop in found["drops"]["noise"].items():
        assert drop["mean"] == pytest.approx(found["scores"]["model"][name] - expected[name])
        assert drop["interval"][0] - 1e-9 <= drop["mean"] <= drop["interval"][1] + 1e-9
        low, high = found["perturbed_intervals"]["noise"][name]
        assert 0 <= low <= expected[name] + 1e-9 and high <= 1


def test_an_earlier_step_can_be_evaluated(config, workdir, trained):
    config.eval.checkpoint = "4"
    evaluate(Settings.of(config), Workdir(workdir))
    assert results(workdir)["checkpoint_step"] == 4
    assert [row["log_prob"] for row in rows(workdir)] != [row["log_prob"] for row in rows(trained)]
    config.eval.checkpoint = "best"
    evaluate(Settings.of(config), Workdir(workdir))
    losses = {
        line["step"]: line["valid_loss"] for line in map(json.loads, (workdir / "metrics.jsonl").open()) if "valid_loss" in line
    }
    assert results(workdir)["checkpoint_step"] == min(losses, key=losses.get) and set(losses) == {4, 8}
    config.eval.checkpoint = "5"
    before = files(workdir)
    with pytest.raises(CheckpointError, match=r"checkpoint '5' found, 'last', 'best' or one of \[4, 8\] expected"):
        evaluate(Settings.of(config), Workdir(workdir))
    assert files(workdir) == before


def test_an_exported_folder_gives_the_checkpoint_s_answers(config, workdir, trained):
    export(Settings.of(config), Workdir(workdir))
    config.eval.checkpoint = str(workdir / "export")
    evaluate(Settings.of(config), Workdir(workdir))
    assert [row["tokens"] for row in rows(workdir)] == [row["tokens"] for row in rows(trained)]
    assert results(workdir)["checkpoint_step"] is None
    assert results(workdir)["scores"] == results(trained)["scores"]


def test_a_folder_of_another_tokenizer_is_refused_and_nothing_overwritten(config, workdir):
    evaluate(Settings.of(config), Workdir(workdir))
    export(Settings.of(config), Workdir(workdir))
    before = files(workdir)
    text = (workdir / "export/tokenizer.json").read_text()
    (workdir / "export/tokenizer.json").write_text(text.replace("signal_300", "signal_3000"))
    config.eval.checkpoint = str(workdir / "export")
    message = r"its tokenizer is not the one of .*: \d+ tokens differ, for example 'signal_3000?'"
    with pytest.raises(CheckpointError, match=message):
        evaluate(Settings.of(config), Workdir(workdir))
    assert files(workdir) == before


@pytest.mark.parametrize("change", ["merges", "percentiles", "gone"])
def test_a_folder_of_another_ecg_tokenizer_is_refused(config, workdir, change):
    export(Settings.of(config), Workdir(workdir))
    file = workdir / "export/ecg_tokenizer.json"
    own = ECGTokenizer.load(file)
    assert file.read_bytes() == (workdir / "tokenizer/ecg_tokenizer.json").read_bytes()
    match change:
        case "merges":  # as many
            replace(own, bpe=BPE.train(np.random.default_rng(0).integers(0, 26, 40_000, np.uint8), 100)).save(file)
        case "percentiles":
            replace(own, quantizer=Quantizer(own.quantizer.percentile_1, own.quantizer.percentile_99 + 0.1)).save(file)
        case "gone":
            file.unlink()
    config.eval.checkpoint = str(workdir / "export")
    message = "no such file.*copy .* from the run" if change == "gone" else "another ECG tokenizer than .*ecg_tokenizer.json"
    with pytest.raises(CheckpointError, match=rf"export/ecg_tokenizer\.json: {message}"):
        evaluate(Settings.of(config), Workdir(workdir))


def test_a_folder_whose_ecg_tokenizer_encodes_alike_is_taken(config, workdir):
    export(Settings.of(config), Workdir(workdir))
    file = workdir / "export/ecg_tokenizer.json"
    replace(ECGTokenizer.load(file), training=None).save(file)
    config.eval.checkpoint = str(workdir / "export")
    evaluate(Settings.of(config), Workdir(workdir))
    assert results(workdir)["checkpoint_step"] is None


def test_a_folder_of_a_model_that_is_too_short_is_refused(config, workdir):
    export(Settings.of(config), Workdir(workdir))
    config.eval.checkpoint, config.eval.max_new_tokens = str(workdir / "export"), 16
    config.prompt.max_length = small_config().prompt.max_length
    with pytest.raises(CheckpointError, match=r"264 positions found, at least .* = 272 expected"):
        evaluate(Settings.of(config), Workdir(workdir))


def test_a_checkpoint_of_another_model_is_refused_and_nothing_overwritten(config, workdir):
    evaluate(Settings.of(config), Workdir(workdir))
    before = files(workdir)
    config.model.layers = 3
    with pytest.raises(ConfigError, match=r"model\.layers: 2 -> 3"):
        evaluate(Settings.of(config), Workdir(workdir))
    assert files(workdir) == before


def test_empty_references_are_refused_before_anything_is_written(config, workdir, monkeypatch):
    opened = questions.open_shown

    def emptied(*a):
        sequences = opened(*a)
        return [replace(sequences[i], answer=" " if i == 3 else sequences[i].answer) for i in range(len(sequences))]

    monkeypatch.setattr(questions, "open_shown", emptied)
    with pytest.raises(ScoresError, match=r"1 of 16 references of split 'test' are empty, for example that of"):
        evaluate(Settings.of(config), Workdir(workdir))
    assert not (workdir / "eval").exists()


def test_answers_that_are_not_ascii_are_written_as_they_are(config, workdir, monkeypatch):
    text = "Vorhofflimmern, Övrig 心電図 🫀\u2028 \x00"
    give = answers.Answerer.answer
    monkeypatch.setattr(answers.Answerer, "answer", lambda *a: [found._replace(text=text) for found in give(*a)])
    evaluate(Settings.of(config), Workdir(workdir))
    assert {row["answer"] for row in rows(workdir)} == {text} and "心電図".encode() in files(workdir)["generations.jsonl"]
    assert results(workdir)["scores"]["model"]["exact_match"] == 0.0


def test_several_evaluations_are_side_by_side(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "w")
    before = files(tmp_path / "w")
    config = small_config()
    config.eval.name, config.eval.split = "valid", "valid"
    evaluate(Settings.of(config), Workdir(tmp_path / "w", "valid"))
    assert json.loads((tmp_path / "w/eval/valid/results.json").read_text())["split"] == "valid"
    assert files(tmp_path / "w") == before and not list((tmp_path / "w").glob("eval.old-*"))
    assert json.loads((tmp_path / "w/config.json").read_text())["eval"]["split"] == "test"  # what --run goes on with
    monkeypatch.setattr(stage, "_answer", None)  # nothing is asked again
    evaluate(Settings.of(small_config()), Workdir(tmp_path / "w"))
    evaluate(Settings.of(config), Workdir(tmp_path / "w", "valid"))


_EVEN = {"log_prob": -1.0, "log_prob_to_other_ecg": -1.0}


def line(id: str, patient: str, reference: str, answer: str, kind: str = "single-verify", seed: int = 0) -> dict:
    """A row of generations.jsonl, as far as the scores ask for it."""
    meta = {"question_type": kind, "attribute_type": "scp_code"} if kind else {}
    texts = {"reference": reference, "answer": answer, "answer_to_other_ecg": "no", "commonest_answer": "yes"}
    return {"id": id, "segment": 0, "seed": seed, "patient": patient, "question": "?", "meta": meta, **texts, **_EVEN}


def test_scores_by_recording_are_those_of_one_vote():
    lines = [
        line("1", "a", "yes", "yes"),
        line("1", "a", "yes", "no"),
        line("1", "a", "yes", "yes"),
        line("2", "b", "no", "no"),
    ]
    for segment, row in enumerate(lines[:3]):
        row["segment"] = segment
    found = make_results(lines, Scorers(), 100, 0)
    assert found["scores"]["model"]["exact_match"] == 0.75
    voted = found["by_recording"]
    assert voted["questions"] == 2 and voted["scores"]["model"]["exact_match"] == 1.0
    assert voted["scores"]["another patient's ECG"]["exact_match"] == 0.5
    assert found["verdict"]["differences"]["another patient's ECG"]["mean"] == 0.5
    assert voted["yes_no"]["systems"]["model"]["balanced_accuracy"] == 1.0
    assert (voted["yes_no"]["questions"], voted["yes_no"]["yes"]) == (2, 1)


def test_a_question_about_two_attributes_counts_for_both():
    lines = [line(str(i), f"p{i}", "yes", answer) for i, answer in enumerate(("yes", "no", "yes"))]
    for row, names in zip(lines, (["noise"], ["noise", "drift"], None)):
        row["meta"]["attribute"] = names
    found = make_results(lines, Scorers(), 100, 0)
    scores = {name: (part["sequences"], part["exact_match"]) for name, part in found["by_attribute"].items()}
    assert scores == {"noise": (2, 0.5), "drift": (1, 0.0)}
    assert found["by_attribute_intervals"]["noise"]["exact_match"] == [0.0, 1.0]
    assert found["by_attribute_intervals"]["drift"]["exact_match"] == [0.0, 0.0]


def test_the_verdict_is_about_both_controls():
    lines = [line(str(i), f"p{i}", "yes" if i % 2 else "no", "yes" if i % 2 else "no") for i in range(40)]
    found = make_results(lines, Scorers(), 500, 0)
    verdict = found["verdict"]
    assert verdict["evidence"] == "reads" and verdict["sentence"].startswith("reads the ECG: +50.0 [")
    assert verdict["differences"]["another patient's ECG"]["mean"] == pytest.approx(0.5)
    assert verdict["over_commonest"].startswith("beats the commonest answer: +50.0 [")
    assert found["hidden"] == ["bleu", "mean_bleu", "rouge_2"]
    same = make_results([row | {"answer": "no"} for row in lines], Scorers(), 500, 0)["verdict"]
    assert same["evidence"] == "none" and same["sentence"] == "no evidence that it reads the ECG: 0.0 [0.0, 0.0]"


def test_results_by_hand():
    lines = [
        line("1", "a", "yes", "yes"),
        line("2", "a", "no", ""),
        line("3", "b", "sinus rhythm", "sinus rhythm", "single-query"),
        line("4", "b", "A B", "B A", "single-choose"),
        line("5", "c", "yes", "no"),
        line("6", "c", "yes", "yes"),
    ]
    found = make_results([one | {"answers_perturbed": {"noise": "no"}} for one in lines], Scorers(), 100, 0)
    assert {system: scores["exact_match"] for system, scores in found["scores"].items()} == {
        "model": 0.5, "another patient's ECG": 1 / 6, "commonest answer": 0.5,
    }  # fmt: skip
    assert found["empty_answers"] == 1 and found["patients"] == 3
    assert found["by_question_type"]["single-verify"]["exact_match"] == 0.5
    assert found["by_question_type"]["single-verify"]["hidden"] == ["bleu", "mean_bleu", "rouge_2"]
    assert found["by_question_type"]["single-query"]["hidden"] == found["hidden"] == []
    assert found["perturbed"]["noise"]["exact_match"] == pytest.approx(1 / 6)
    assert found["macro_f1"] == pytest.approx(
        {"model": (0.8 + 0 + 1) / 3, "another patient's ECG": (0 + 1 / 3 + 0) / 3, "commonest answer": (0.75 + 0 + 0) / 3}
    )
    assert found["intervals"]["model"]["exact_match"] == [0.5, 0.5]
    without = make_results([line("1", "a", "yes", "yes", ""), line("2", "b", "no", "no", "")], Scorers(), 10, 0)
    assert without["by_question_type"] == {} and "macro_f1" not in without


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("seeds", (0, 1), r"eval\.seeds: \(0, 1\) found with temperature 0"),
        ("seeds", (), r"eval\.seeds: \(\) found"),
        ("seeds", (3, 3), r"eval\.seeds: \(3, 3\) found"),
        ("checkpoint", "", r"eval\.checkpoint: '' found"),
        ("checkpoint", "newest", r"eval\.checkpoint: 'newest' found"),
        ("perturb", ("hum",), r"eval\.perturb: \('hum',\) found, some of \('noise'"),
        ("top_p", 0.0, r"eval\.top_p: 0\.0 found"),
        ("bootstrap", 0, r"eval\.bootstrap: 0 found"),
    ],
)
def test_settings_that_cannot_work_are_refused(config, field, value, message):
    config.eval[field] = value
    with pytest.raises(ConfigError, match=message):
        Settings.of(config)


def test_wander_needs_one_sample_rate(config):
    config.signal.target_rate, config.eval.perturb = 0.0, ("wander",)
    with pytest.raises(ConfigError, match=r"'wander' needs one sample rate"):
        Settings.of(config)


def test_the_settings_of_earlier_answers_bring_them_and_their_config_back(config, workdir, monkeypatch):
    evaluate(Settings.of(config), Workdir(workdir))
    before = (workdir / "eval/generations.jsonl").read_bytes()
    config.eval.max_new_tokens = 4
    evaluate(Settings.of(config), Workdir(workdir))
    assert (workdir / "eval/generations.jsonl").read_bytes() != before
    monkeypatch.setattr(stage, "_answer", lambda *_: pytest.fail("answered again"))
    config.eval.max_new_tokens = 8
    evaluate(Settings.of(config), Workdir(workdir))
    assert (workdir / "eval/generations.jsonl").read_bytes() == before
    assert json.loads((workdir / "config.json").read_text())["eval"]["max_new_tokens"] == 8
