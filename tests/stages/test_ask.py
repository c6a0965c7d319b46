"""Questions about one's own recordings, as answered in the terminal."""

import io

import numpy as np
import pytest

from ecgbyte_jax.ecg.records import read_record
from ecgbyte_jax.errors import ConfigError, RecordError
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import ask as asking
from ecgbyte_jax.stages.ask import ask
from ecgbyte_jax.stages.inquiry import Inquiry
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
    assert shown.count("answer   ") == 2 and "5 segment(s) of 2 s" in shown and "no medical device" in shown
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
    assert shown.count("answer   ") == 2 and shown.count(" and ") == 2 and QUESTION in shown


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
        (Inquiry((records[0],), (QUESTION,), picture="a.jpg"), ConfigError, "--picture: 'a.jpg'"),
        (Inquiry(("nowhere",), (QUESTION,)), RecordError, "nowhere: no such recording"),
        (Inquiry((str(tmp_path / "uv.npy"),), (QUESTION,), 500, leads), RecordError, "looks like microvolts"),
        (Inquiry((str(short),), (QUESTION,), 500, leads), RecordError, "short.npy: 70 samples found"),
    ):
        with pytest.raises(kind, match=message):
            ask(Settings.of(small_settings()), Workdir(finished[0]), inquiry)
    with pytest.raises(ConfigError, match="found without --stage=ask"):
        run(small_settings(), finished[0], ["eval"], inquiry=Inquiry((records[0],)))


@pytest.mark.slow
def test_ask_from_the_command_line(finished, records):
    done = small_demo(finished[0], "--stage=ask", f"--record={records[0]},{records[1]}", f"--question={QUESTION}")
    assert done.returncode == 0 and done.stdout.count("answer   ") == 2, done.stderr
    wrong = small_demo(finished[0], "--stage=ask", "--record=nowhere", "--question=x")
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1 and "Traceback" not in wrong.stderr
