import csv
import json
import shutil

import numpy as np
import pytest

from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.stages.compare import compare


def make_run(folder, answers: dict[str, str], split: str = "test", seeds=(0,), **changed) -> str:
    """A run's folder, as far as a comparison reads it: example n is of patient n // 4, its reference is 'yes'."""
    (folder / "eval").mkdir(parents=True)
    (folder / "eval/results.json").write_text(json.dumps({"split": split, "seeds": list(seeds), "checkpoint_step": 7}))
    with (folder / "eval/generations.jsonl").open("w") as file:
        for seed in seeds:
            for id, answer in answers.items():
                row = {"id": id, "segment": 0, "seed": seed, "patient": str(int(id) // 4), "question": "?"}
                row |= {"reference": "yes", "answer": answer, "answer_to_other_ecg": "", "commonest_answer": "", "meta": {}}
                file.write(json.dumps(row | changed) + "\n")
    return str(folder)


def share(correct: float, examples=range(40)) -> dict[str, str]:
    rng = np.random.default_rng(0)
    return {str(i): "yes" if draw < correct else "no" for i, draw in zip(examples, rng.random(len(examples)))}


def test_runs_are_compared_on_what_all_of_them_answered(tmp_path, capsys):
    first = make_run(tmp_path / "a", share(0.3))
    second = make_run(tmp_path / "b", share(0.9, range(8, 44)), seeds=(0, 1))
    out = tmp_path / "table.json"
    compare([first, second], out)
    found = json.loads(out.read_text())
    assert found["sequences"] == 32 and found["patients"] == 8 and found["split"] == "test"
    a, b = (found["runs"][run] for run in (first, second))
    common = [str(i) for i in range(8, 40)]
    expected = [np.mean([answers[i] == "yes" for i in common]) for answers in (share(0.3), share(0.9, range(8, 44)))]
    assert [run["scores"]["exact_match"] for run in (a, b)] == pytest.approx(expected)
    difference = b["differences"]["exact_match"]
    assert difference["mean"] == pytest.approx(expected[1] - expected[0])
    assert 0 < difference["interval"][0] < difference["mean"] < difference["interval"][1]
    assert "differences" not in a and b["seeds"] == [0, 1]
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert float(rows[0]["score"]) == pytest.approx(expected[0]) and {row["run"] for row in rows} == {first, second}
    row = next(row for row in rows if (row["run"], row["metric"]) == (second, "exact_match"))
    assert [float(row[name]) for name in ("low", "high")] == b["intervals"]["exact_match"]
    written = [float(row[f"difference{end}"]) for end in ("", "_low", "_high")]
    assert written == [difference["mean"], *difference["interval"]]
    shown = capsys.readouterr().out
    assert "32 sequences of 8 patients" in shown and str(out) in shown


def test_what_another_patient_s_ecg_and_the_commonest_answer_score_is_beside_the_runs(tmp_path, capsys):
    first = make_run(tmp_path / "a", share(1.0), answer_to_other_ecg="no", commonest_answer="yes")
    second = make_run(tmp_path / "b", share(0.0), answer_to_other_ecg="yes", commonest_answer="no")
    compare([first, second], tmp_path / "table.json")
    found = json.loads((tmp_path / "table.json").read_text())
    assert [found["runs"][run]["to_other_ecg"]["exact_match"] for run in (first, second)] == [0.0, 1.0]
    assert found["commonest_answer"]["exact_match"] == 1.0
    shown = " ".join(capsys.readouterr().out.split())
    assert "another patient's ECG (" in shown and "commonest answer" in shown


def test_named_evaluations_of_one_run_are_compared(tmp_path, monkeypatch):
    run, named = make_run(tmp_path / "a", share(0.3)), make_run(tmp_path / "b", share(0.9))
    shutil.move(tmp_path / "b/eval", tmp_path / "a/eval/best")
    best = f"{run}/eval/best"
    compare([run, best], tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())["runs"]
    assert set(found) == {run, best} and found[best]["differences"]["exact_match"]["mean"] > 0.3
    compare([f"{run}/eval", best], tmp_path / "d.json")
    monkeypatch.chdir(tmp_path / "a/eval")
    compare(["best", "."], tmp_path / "f.json")
    for same in (f"{run}/", f"{run}/eval"):
        with pytest.raises(ScoresError, match="none twice"):
            compare([run, same], tmp_path / "e.json")
    monkeypatch.chdir(tmp_path)
    shutil.move(tmp_path / "a/eval", tmp_path / "disk")
    (tmp_path / "a/eval").symlink_to(tmp_path / "disk")
    compare(["a/eval", "a/eval/best"], tmp_path / "g.json")
    with pytest.raises(ScoresError, match=r"no such file; '.*b' has no evaluation"):
        compare([run, named], tmp_path / "e.json")


def test_a_run_s_score_is_the_mean_over_its_seeds(tmp_path):
    runs = [make_run(tmp_path / "a", share(0.5)), make_run(tmp_path / "b", share(0.9), seeds=(0, 1))]
    path = tmp_path / "b/eval/generations.jsonl"
    rows = [row | ({"answer": "no"} if row["seed"] else {}) for row in map(json.loads, path.open())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    compare(runs, tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())["runs"][runs[1]]
    right = np.mean([answer == "yes" for answer in share(0.9).values()])
    assert found["scores"]["exact_match"] == pytest.approx(right / 2)


def test_differences_are_paired(tmp_path):
    """Where one run is better by an answer of each patient it is surely better, however much patients differ."""
    answers = {str(i): "yes" if (i // 4) % 2 and i % 4 else "no" for i in range(40)}
    runs = [make_run(tmp_path / "a", answers), make_run(tmp_path / "b", answers | {str(i): "yes" for i in range(0, 40, 4)})]
    compare(runs, tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())["runs"][runs[1]]
    assert found["differences"]["exact_match"]["interval"] == pytest.approx([0.25, 0.25])
    assert np.ptp(found["intervals"]["exact_match"]) > 0.3


def test_a_difference_whose_interval_does_not_contain_0_is_marked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", share(0.3))
    make_run(tmp_path / "better", share(0.9))
    make_run(tmp_path / "same", share(0.3))
    compare(["a", "better", "same"], tmp_path / "c.json")
    shown = capsys.readouterr().out.splitlines()
    better, same = (next(line for line in shown if f"minus the first ({run})" in line) for run in ("better", "same"))
    assert "*" in better and "*" not in same


def test_the_same_comparison_again_gives_the_same_bytes_and_another_is_not_overwritten(tmp_path):
    runs = [make_run(tmp_path / name, share(s)) for name, s in (("a", 0.2), ("b", 0.5), ("c", 0.8))]
    out = tmp_path / "new" / "table.json"
    compare(runs, out)
    before = out.read_bytes()
    compare(runs, out)
    assert out.read_bytes() == before
    with pytest.raises(ScoresError, match=r"table\.json: another comparison is there; give --out another name"):
        compare(runs[:2], out)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"split": "valid"}, r"split 'valid' of .* and 'test' of .* found; one split expected"),
        ({"reference": "no"}, r"the reference of example '\d+' is 'no' in .* and 'yes' in .*; runs of the same data expected"),
        ({"segment": 9}, r"have no example in common"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, changed, message):
    runs = [make_run(tmp_path / "a", share(0.5)), make_run(tmp_path / "b", share(0.5), **changed)]
    with pytest.raises(ScoresError, match=message):
        compare(runs, tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()


def test_a_run_without_evaluation_is_named(tmp_path):
    runs = [make_run(tmp_path / "a", share(0.5)), str(tmp_path / "nothing")]
    with pytest.raises(ScoresError, match=r"nothing/eval/results\.json: no such file; .* run --stage=eval there"):
        compare(runs, tmp_path / "c.json")
    (tmp_path / "nothing/eval").mkdir(parents=True)
    (tmp_path / "nothing/eval/results.json").write_text("[]")
    with pytest.raises(ScoresError, match=r"not the results of an evaluation"):
        compare(runs, tmp_path / "c.json")
    for few in ([], runs[:1], runs[:1] * 2):
        with pytest.raises(ScoresError, match=r"--runs: .* two run folders or more expected"):
            compare(few, tmp_path / "c.json")


@pytest.mark.parametrize("name", ["x.csv", "x.CSV", "folder", "."])
def test_an_out_that_is_no_json_file_is_refused_before_any_work(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ScoresError, match=r"--out: .* found, a file for the scores as JSON expected"):
        compare(["a", "b"], tmp_path / name)


def test_an_out_that_cannot_be_written_is_named(tmp_path):
    runs = [make_run(tmp_path / name, share(0.5)) for name in "ab"]
    (tmp_path / "file").touch()
    with pytest.raises(ScoresError, match=r"--out: '.*file/x\.json' cannot be written: File exists"):
        compare(runs, tmp_path / "file/x.json")


def make_fold(folder, fold: int, correct: float, examples=None, **settings) -> str:
    """A run of one of three folds, of patients 4 (fold - 1) to 4 fold - 1, with the settings that its config.json keeps."""
    run = make_run(folder, share(correct, examples or range(16 * (fold - 1), 16 * fold)))
    config = {"seed": 0, "data": {"folds": 3, "fold": fold}} | settings
    answered = {"settings": {"eval": {"max_sequences": 0, "batch_size": fold} | settings.get("eval", {})}}
    Workdir(folder).answers_marker.write_text(json.dumps(answered | {"digest": "", "inputs": "", "finished": True}))
    (folder / "config.json").write_text(json.dumps(config))
    return run


def test_the_folds_of_a_cross_validation_are_one_row_over_all_their_patients(tmp_path, capsys):
    shares = {1: 1.0, 2: 0.0, 3: 0.5}
    runs = [make_fold(tmp_path / f"f{fold}", fold, shares[fold]) for fold in (2, 3, 1)]
    compare(runs, tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["sequences"] == 48 and found["patients"] == 12
    ((name, joined),) = found["runs"].items()
    folds = found["folds"][name]
    assert [(part["fold"], part["patients"]) for part in folds] == [(1, 4), (2, 4), (3, 4)]
    means = [part["scores"]["exact_match"] for part in folds]
    assert means[:2] == [1.0, 0.0] and joined["scores"]["exact_match"] == pytest.approx(np.mean(means))
    answers = {id: answer for fold in shares for id, answer in share(shares[fold], range(16 * fold - 16, 16 * fold)).items()}
    whole = [make_run(tmp_path / name, answers) for name in "ab"]
    compare(whole, tmp_path / "d.json")
    same = json.loads((tmp_path / "d.json").read_text())["runs"][whole[0]]
    assert joined["intervals"] == same["intervals"] and "fold 2 (" in capsys.readouterr().out


def test_two_systems_are_compared_over_their_folds_and_two_of_one_fold_as_they_are(tmp_path):
    runs = [
        make_fold(tmp_path / f"{name}{fold}", fold, right, model={"width": width})
        for name, right, width in (("a", 0.2, 8), ("b", 0.9, 16))
        for fold in (1, 2, 3)
    ]
    compare(runs, tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())["runs"]
    assert len(found) == 2 and [*found.values()][1]["differences"]["exact_match"]["interval"][0] > 0.3
    compare([runs[0], runs[3]], tmp_path / "d.json")
    assert json.loads((tmp_path / "d.json").read_text())["runs"].keys() == {runs[0], runs[3]}


def test_folds_that_are_missing_doubled_or_of_other_settings_or_data_are_refused(tmp_path):
    one, two, three = (make_fold(tmp_path / f"f{fold}", fold, 0.5) for fold in (1, 2, 3))
    again = make_fold(tmp_path / "again", 2, 0.5)
    other = make_fold(tmp_path / "other", 3, 0.5, train={"epochs": 9.0})
    fewer = make_fold(tmp_path / "fewer", 3, 0.5, eval={"max_sequences": 8})
    overlapping = make_fold(tmp_path / "overlapping", 3, 0.5, range(20, 40))
    whole = make_run(tmp_path / "whole", share(0.5))
    for runs, message in (
        ([one, two], r"folds \[1, 2\] of 3 found in .*, each of 1 to 3 once expected$"),
        ([one, two, again, three], r"folds \[1, 2, 2, 3\] of 3 found"),
        ([one, two, other], r"other differs from .*f1 in train.epochs, but only data.fold may differ"),
        ([one, two, fewer], r"fewer differs from .*f1 in eval.max_sequences, but only data.fold may differ"),
        ([one, two, overlapping], r"patient '5' is in split 'test' of .*f2 and of .*overlapping; folds of the same data"),
        ([one, two, three, whole], r"whole has no data.folds, others have"),
    ):
        with pytest.raises(ScoresError, match=message):
            compare(runs, tmp_path / "c.json")
