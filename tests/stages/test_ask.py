"""Questions about one's own recordings, as answered in the terminal."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_jax.asking.reply import Reply
from ecgbyte_jax.asking.subject import Subject
from ecgbyte_jax.asking.worth import Worth
from ecgbyte_jax.ecg.records import read_record
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError, RecordError
from ecgbyte_jax.evaluate.generations import Answer
from ecgbyte_jax.inputs.recording import read_list
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import ask as asking
from ecgbyte_jax.stages.ask import ask
from ecgbyte_jax.stages.inquiry import Inquiry, read_questions
from ecgbyte_jax.stages.pipeline import run
from tests.stages.test_report import small_settings
from tests.test_main import small_demo

QUESTION = "Is the heart rate above 90 beats per minute?"


@pytest.fixture
def records(finished) -> list[str]:
    found = sorted((finished[0] / "synthetic/ptbxl").rglob("*_hr.hea"))
    return [str(path.with_suffix("")) for path in found[:2]]


def test_any_kind_of_file_gets_the_same_answer_and_a_picture(finished, records, tmp_path, capsys):
    record = read_record(records[0])
    np.save(tmp_path / "a.npy", 1000 * record.signal.T)
    (tmp_path / "a.csv").write_text(
        "\n".join([",".join(record.leads), *(",".join(f"{v:.4f}" for v in row) for row in record.signal.T)])
    )
    files = (records[0], str(tmp_path / "a.csv"))
    wfdb = Inquiry((records[0],), (QUESTION, "Why?"), picture=str(tmp_path / "p.png"))
    ask(Settings.of(small_settings()), Workdir(finished[0]), wfdb)
    shown = capsys.readouterr().out
    assert shown.count("answer   ") == 2 and "not a medical device" in shown
    assert "12 leads, 500 Hz, 10 s, about " in shown and "5 segments of 2 s" in shown
    assert {path.name for path in tmp_path.glob("*.png")} == {"p.png", "p_2.png"}
    ask(Settings.of(small_settings()), Workdir(finished[0]), Inquiry((files[1],), (QUESTION,), sample_rate=500))
    ask(
        Settings.of(small_settings()),
        Workdir(finished[0]),
        Inquiry((str(tmp_path / "a.npy"),), (QUESTION,), 500, record.leads, "uV"),
    )
    lines = [line for line in (shown + capsys.readouterr().out).splitlines() if line.startswith("answer")]
    assert lines[0] == lines[2] == lines[3]


def test_questions_come_from_the_terminal_and_two_recordings_can_be_compared(finished, records, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n\nWhat changed?\n"))
    ask(Settings.of(small_settings()), Workdir(finished[0]), Inquiry(tuple(records), together=True))
    shown = capsys.readouterr().out
    assert shown.count("answer   ") == 2 and QUESTION in shown
    name, other = (record.rsplit("/", 1)[1] for record in records)
    assert shown.count(f"about      {name} and {other}\n") == 2 and shown.count("recording  ") == 2


def test_a_wrong_inquiry_is_refused_before_the_model_is_loaded(finished, records, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "open_trained", lambda *_: pytest.fail("loaded"))
    np.save(tmp_path / "uv.npy", 1000 * read_record(records[0]).signal)
    leads = read_record(records[0]).leads
    short = tmp_path / "short.npy"
    np.save(short, read_record(records[0]).signal[:, :700])
    for inquiry, kind, message in (
        (Inquiry(()), ConfigError, "--record is missing"),
        (Inquiry((records[0],), (QUESTION,), together=True), ConfigError, "--together: one recording"),
        (Inquiry((records[0],), (" ",)), ConfigError, "--question: an empty one"),
        (Inquiry((records[0],), ("caf\udce9",)), ConfigError, "--question: .* found, text in UTF-8 expected"),
        (Inquiry((records[0],), (QUESTION,), picture="a.jpg"), ConfigError, "--picture: 'a.jpg'"),
        (Inquiry((), record_list="list.txt"), ConfigError, "--record_list: found without --question"),
        (Inquiry((), (QUESTION,), record_list="nowhere"), ConfigError, "--record_list: 'nowhere' cannot be read"),
        (Inquiry(("nowhere",), (QUESTION,)), RecordError, "nowhere: no such recording"),
        (Inquiry((str(tmp_path / "uv.npy"),), (QUESTION,), 500, leads), RecordError, "looks like microvolts"),
        (Inquiry((str(short),), (QUESTION,), 500, leads), RecordError, "short.npy: 70 samples found"),
    ):
        with pytest.raises(kind, match=message):
            ask(Settings.of(small_settings()), Workdir(finished[0]), inquiry)
    with pytest.raises(ConfigError, match="found without --stage=ask"):
        run(small_settings(), finished[0], ["eval"], inquiry=Inquiry((records[0],)))


def test_json_has_a_line_for_each_answer_and_nothing_else_is_on_the_standard_output(finished, records, tmp_path, capsys):
    np.save(tmp_path / "short.npy", np.ones((12, 5)))
    (tmp_path / "list.txt").write_text(f"{records[0]}\n\n{tmp_path}/short.npy\n{records[1]}\n")
    inquiry = Inquiry((), (QUESTION, "What is this?"), format="json", record_list=str(tmp_path / "list.txt"))
    with pytest.raises(RecordError, match=r"list\.txt: 1 of 3 recordings are unusable"):
        run(small_settings(), finished[0], ["ask"], inquiry=inquiry)
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line.get("question") for line in lines] == [QUESTION, "What is this?", None, QUESTION, "What is this?"]
    assert lines[2]["path"].endswith("short.npy") and "short.npy" in lines[2]["error"]
    first = lines[0]
    assert first["recordings"][0]["rate_hz"] == 500 and first["recordings"][0]["seconds"] == 10
    assert 30 < first["recordings"][0]["beats_per_minute"] < 200 and [s["start_s"] for s in first["segments"]] == [
        0,
        2,
        4,
        6,
        8,
    ]
    agreeing = sum(segment["answer"] == first["answer"] for segment in first["segments"])
    assert first["segments_agreeing"] == agreeing and first["majority"] == (agreeing > 2)
    assert 0 < first["probability_in_surest_segment"] <= 1
    assert first["verdict"]["evidence"] == "too few patients" and "medical device" in first["note"]
    assert "unusable   " in printed.err and "recording  " in printed.err


def test_what_speaks_against_an_answer_is_said_with_it(finished, records, tmp_path, capsys):
    for file in ("real.hea", "real.dat"):
        source = Path(records[0]).with_suffix(Path(file).suffix)
        (tmp_path / file).write_bytes(source.read_bytes().replace(source.stem.encode(), b"real"))
    shutil.copytree(finished[0], tmp_path / "w", ignore=shutil.ignore_patterns("eval"))
    settings = Settings.of(small_settings())
    ask(settings, Workdir(tmp_path / "w"), Inquiry((str(tmp_path / "real"),), ("What is the heart rate?",)))
    shown = " ".join(capsys.readouterr().out.split())
    assert "not evaluated, so what its answers are worth is unknown" in shown
    assert "warning the model was trained on synthetic ECGs alone, and this is not one of them: expect wrong answers" in shown
    assert "warning no training question is like this one; the nearest is: " in shown
    assert "from a model trained on synthetic ECGs; research software, not a medical device" in shown
    known = "What rhythm-related symptom does this ECG show?"
    ask(settings, Workdir(finished[0]), Inquiry((records[0],), (known,)))
    shown = capsys.readouterr().out
    assert "synthetic ECGs alone" not in shown and "is like this one" not in shown
    assert "exact match" in shown and "commonest answer" in shown and "too few patients" in shown


@pytest.mark.parametrize(
    "evidence, checkpoint, temperature, warning",
    [
        ("reads", "last", 0.0, None),
        ("none", "last", 0.0, "its evaluation shows: "),
        ("reads", "best", 0.0, "checkpoint last answers, and best was evaluated"),
        ("reads", "last", 0.7, "its evaluation drew answers at random, and here the likeliest one is given"),
    ],
)
def test_answers_that_the_evaluation_does_not_vouch_for_have_a_warning(
    finished, tmp_path, evidence, checkpoint, temperature, warning
):
    done, workdir = Workdir(finished[0]), Workdir(tmp_path)
    results, marker = (json.loads(file.read_text()) for file in (done.results, done.answers_marker))
    results["verdict"]["evidence"], results["checkpoint"] = evidence, checkpoint
    marker["settings"]["eval"]["temperature"] = temperature
    for file, content in (
        (workdir.results, results),
        (workdir.answers_marker, marker),
        (workdir.train_marker, json.loads(done.train_marker.read_text())),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    warnings = Worth.of(Settings.of(small_settings()), workdir).warnings
    assert len(warnings) == (warning is not None) and all(text.startswith(warning) for text in warnings)


def test_a_cut_a_clipped_and_a_second_ecg_are_said(finished, records, tmp_path, capsys):
    settings = Settings.of(small_settings())
    quantizer = ECGTokenizer.load(Workdir(finished[0]).ecg_tokenizer).quantizer
    record = read_record(records[0])
    signal = record.signal.copy()
    signal[record.leads.index("V2")] *= 20
    np.save(tmp_path / "high.npy", signal)
    inquiry = Inquiry((str(tmp_path / "high.npy"), records[0]), (QUESTION,), 500, record.leads, together=True)
    with pytest.raises(RecordError, match="omit --sample_rate"):
        ask(settings, Workdir(finished[0]), inquiry)
    np.save(tmp_path / "plain.npy", record.signal)
    files = (str(tmp_path / "high.npy"), str(tmp_path / "plain.npy"))
    ask(settings, Workdir(finished[0]), Inquiry(files, (QUESTION,), 500, record.leads, together=True))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"of V2 lie beyond the tokenizer's range of {quantizer.low:.2f} to {quantizer.high:.2f} mV and are clipped" in shown
    assert shown.count("are clipped") == 1
    assert "warning the training's questions were about 1 ECG at a time, this is about 2" in shown
    assert "segments do not fit into the prompt: up to" in shown


def test_an_answer_without_a_majority_is_called_that(capsys):
    answers = [Answer(text, [], log_prob) for text, log_prob in (("a", -0.1), ("a", -0.2), ("b", -0.3), ("c", -0.4))]
    subject = Subject("r", (), 50.0, 2.0, ((),) * 4, ((),) * 4)
    asking._show(subject, Reply("?", answers, 0, ()), several=False, typed=False)
    assert "answer     a   [no majority: 2 of 4 segments; " in capsys.readouterr().out
    asking._show(subject, Reply("?", answers[:3], 0, ()), several=False, typed=False)
    assert "answer     a   [2 of 3 segments; " in capsys.readouterr().out


def test_a_typed_question_that_is_too_long_does_not_end_the_conversation(finished, records, capsys, monkeypatch):
    lines = iter(["long " * 2000, "\udce9", QUESTION])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: next(lines, None) or (_ for _ in ()).throw(EOFError))
    ask(Settings.of(small_settings()), Workdir(finished[0]), Inquiry((records[0],)))
    shown = capsys.readouterr().out
    assert "ask a shorter one" in shown and "text in UTF-8 expected" in shown and shown.count("answer   ") == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("long " * 2000))
    with pytest.raises(ConfigError, match="ask a shorter one"):
        ask(Settings.of(small_settings()), Workdir(finished[0]), Inquiry((records[0],)))


def test_a_list_of_recordings_is_read_as_editors_write_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "list.txt").write_bytes("\ufeffa b\r\n\r\n ~/c.csv\n".encode())
    assert read_list(str(tmp_path / "list.txt")) == ["a b", "/home/me/c.csv"]


@pytest.mark.parametrize("end", ["quit", "EXIT", None, KeyboardInterrupt])
def test_a_conversation_ends_as_people_expect(monkeypatch, capsys, end):
    lines = iter(["", "help", "first", " second ", *([] if end is None else [end])])

    def typed(*_):
        line = next(lines, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", typed)
    assert list(read_questions()) == ["first", "second"]
    assert capsys.readouterr().out.count("type a question") == 2


@pytest.mark.slow
def test_ask_from_the_command_line(finished, records):
    done = small_demo(finished[0], "--stage=ask", f"--record={records[0]},{records[1]}", f"--question={QUESTION}")
    assert done.returncode == 0 and done.stdout.count("answer   ") == 2, done.stderr
    wrong = small_demo(finished[0], "--stage=ask", "--record=nowhere", "--question=x")
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1 and "Traceback" not in wrong.stderr
