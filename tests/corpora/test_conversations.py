"""ECGInstruct, ECGBench and ECG-Grounding, on small files in their layouts about recordings in those of their sets."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgbyte_jax.corpora.conversations import locate, read_linked
from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.example import Example, Rejected, split_of
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import CorpusError, ExampleError
from ecgbyte_jax.prepare.corpus import open_corpus
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from tests.corpora.layouts import write_json
from tests.corpora.test_challenge import write as write_challenge

MIMIC = "p1000/p10000032/s40689238/40689238"
TALK = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "Sinus rhythm."}]


@pytest.fixture
def root(tmp_path) -> Path:
    """Four recordings in PTB-XL's layout, one of CPSC and CSN each, and MIMIC's folder."""
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 4, seed=0)
    write_challenge(tmp_path / "cpsc", "g1/A0001")
    write_challenge(tmp_path / "csn", "WFDBRecords/01/010/JS00001")
    (tmp_path / "mimic/files").mkdir(parents=True)
    return tmp_path


def read(root: Path, *entries: dict) -> list[Example | Rejected]:
    write_json(root / "c.json", list(entries))
    return list(read_linked(root / "c.json", root, 500))


def write_parquet(path: Path, rows: list[dict], **more) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows, **more), path)


@pytest.mark.parametrize(
    "path, known, name",
    [
        (f"mimic_v4/{MIMIC}-0.png", "mimic", MIMIC),
        (f"mimic/{MIMIC}-12.png", "mimic", MIMIC),
        (f"mimic-iv/files/{MIMIC}", "mimic", MIMIC),
        ("ptb-xl/00007_hr-0.png", "ptbxl", "7"),
        ("ecg_ptbxl_benchmarking/data/ptbxl/records500/21000/21837_hr", "ptbxl", "21837"),
        ("code15_v4/2508875-0.png", "code15", "2508875"),
        ("code15/2508875", "code15", "2508875"),
        ("cpsc2018/A0001", "cpsc", "A0001"),
        ("champan-shaoxing/WFDBRecords/01/010/JS00001", "csn", "JS00001"),
    ],
)
def test_a_path_of_every_set_names_its_recording(path, known, name):
    assert locate(path) == (known, name)


@pytest.mark.parametrize(
    "path, folder, expected",
    [
        ("A0001-0.png", "cpsc-test", ("cpsc", "A0001")),
        ("images/JS00001-0.png", "csn-test-no-cot", ("csn", "JS00001")),
        ("2508875-0.png", "code15-test", ("code15", "2508875")),
        ("00007_hr-0.png", "ptb-test-report", ("ptbxl", "7")),
        ("images/00007_hr-0.png", "ecgqa-test", ("ptbxl", "7")),
    ],
)
def test_where_the_path_names_no_set_the_folder_of_its_file_does(path, folder, expected):
    assert locate(path, folder) == expected
    with pytest.raises(ExampleError, match="the path of a recording of"):
        locate(path)


numbers = st.integers(1, 99_999)


@given(st.integers(0, 9999), numbers, st.integers(0, 10**8 - 1), numbers, st.integers(0, 99), st.integers(1, 10**18 - 1))
def test_every_recordings_path_is_mapped_back_to_it(group, ecg, study, record, image, exam):
    name = f"p{group:04d}/p{study:08d}/s{study:08d}/{study:08d}"
    assert locate(f"mimic_v4/{name}-{image}.png") == locate(f"mimic-iv/files/{name}") == ("mimic", name)
    assert locate(f"ptb-xl/{ecg:05d}_hr-{image}.png") == locate(f"{ecg:05d}_lr", "ptb-test") == ("ptbxl", str(ecg))
    assert locate(f"code15_v4/{exam}-{image}.png") == ("code15", str(exam))
    assert locate(f"x/A{record % 10_000:04d}-{image}.png", "cpsc-test") == ("cpsc", f"A{record % 10_000:04d}")


@given(st.text(max_size=40), st.sampled_from(["", "mimic/", "ptb-xl/", "code15_v4/", "cpsc/", "csn/"]), st.text(max_size=8))
def test_any_other_path_is_refused_or_names_a_recording_as_its_set_writes_it(text, beginning, folder):
    try:
        known, name = locate(beginning + text, folder)
    except ExampleError:
        return
    assert name in beginning + text and ".." not in name and name.isascii()
    assert known == "mimic" or "/" not in name


def test_conversations_are_about_the_recordings_and_patients_of_their_sets(root):
    items = read(
        root,
        {"id": "a", "image": "ptb-xl/00003_hr-0.png", "conversations": TALK * 2},
        {"id": "b", "image": "x.png", "ecg": f"mimic-iv/files/{MIMIC}", "conversations": TALK},
        {"id": "c", "image": "cpsc/A0001-0.png", "conversations": TALK},
    )
    first, second, third, fourth = items
    about = {"conversation": "0", "question_type": "ptbxl"}
    record = WfdbRecord(root / "ptbxl", "records500/00000/00003_hr")
    answer = "What is this?", "Sinus rhythm."
    assert first == Example("0/0", "ptbxl 2", "train", (record,), *answer, about | {"turn": 0})
    assert second == Example("0/1", "ptbxl 2", "train", (record,), *answer, about | {"turn": 1}, (answer,), "0/0")
    assert third.records == (WfdbRecord(root / "mimic", f"files/{MIMIC}"),)
    assert (third.patient, third.split) == ("mimic p10000032", split_of("p10000032"))
    assert (fourth.patient, fourth.split, fourth.meta["question_type"]) == ("cpsc A0001", split_of("A0001"), "cpsc")


def test_missing_recordings_are_counted_by_their_sets(root, config, capsys):
    paths = ["ptb-xl/00001_hr-0.png", "ptb-xl/00009_hr-0.png", "code15_v4/7-0.png", "code15_v4/8-0.png", f"mimic/{MIMIC}-0.png"]
    write_json(root / "ECGInstruct.json", [{"image": path, "conversations": TALK} for path in paths])
    config.data.corpus, config.data.synthetic_records, config.data.root = "ecg_instruct", 0, str(root)
    settings, workdir = Settings.of(config), Workdir(root / "w")
    corpus = open_corpus(settings, workdir, lineage.synthetic(settings, workdir))
    assert corpus.read == 5 and [e.patient for e in corpus.examples] == ["ptbxl 1", "mimic p10000032"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 5 examples are set aside, as their recordings are not in" in printed and "code15'" in printed
    assert "1 of 5 examples are set aside" in printed


@pytest.mark.parametrize(
    "entry, reason",
    [
        ({"conversations": TALK}, "None found in ecg or image_path or image"),
        ({"image": 7, "conversations": TALK}, "7 found in ecg or image_path or image"),
        ({"image": "elsewhere/1.png", "conversations": TALK}, "'elsewhere/1.png' found"),
        ({"image": "ptb-xl/00001_hr-0.png"}, "an object with the fields"),
        ({"image": "ptb-xl/00001_hr-0.png", "conversations": TALK[:1]}, "alternating texts"),
        ({"image": "ptb-xl/00001_hr-0.png", "conversations": []}, "the conversation is empty"),
        ({"image": "ptb-xl/00001_hr-0.png", "conversations": [TALK[0] | {"value": "<image>"}, TALK[1]]}, "question is empty"),
        ([], "an object with the fields"),
    ],
)
def test_a_bad_conversation_is_set_aside_and_the_others_are_read(root, entry, reason):
    good = {"image": "ptb-xl/00001_hr-0.png", "conversations": TALK}
    first, bad, last = read(root, good, entry, good)
    assert isinstance(first, Example) and isinstance(last, Example) and reason in bad.reason


def test_parquet_is_read_with_texts_in_parts_and_without_its_images(root):
    parts = [{"from": "human", "value": ["<image>\n", "What is ", "this?"]}, {"from": "gpt", "value": ["Sinus rhythm."]}]
    for folder, path, talk in (
        ("cpsc-test", "A0001-0.png", TALK),
        ("csn-test-no-cot", "JS00001-0.png", TALK),
        ("ecgqa-test", "images/00002_hr-0.png", parts),
    ):
        rows = [{"image": {"bytes": b"png"}, "image_path": path, "conversations": talk}]
        write_parquet(root / f"ECGBench/{folder}/test-00000-of-00001.parquet", rows)
    items = list(read_linked(root / "ECGBench", root, 500))
    assert [(e.meta["question_type"], e.patient) for e in items] == [
        ("cpsc-test", "cpsc A0001"), ("csn-test-no-cot", "csn JS00001"), ("ecgqa-test", "ptbxl 1"),
    ]  # fmt: skip
    assert {(e.question, e.answer) for e in items} == {("What is this?", "Sinus rhythm.")} and len({e.id for e in items}) == 3


def test_a_parquet_file_that_is_cut_or_of_another_kind_is_refused(root):
    path = root / "ECGBench/cpsc-test/a.parquet"
    write_parquet(path, [{"image_path": "A0001-0.png", "conversations": TALK}])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"a\.parquet: not readable as parquet, or truncated: [^\n]*$"):
        list(read_linked(root / "ECGBench", root, 500))
    write_parquet(path, [{"image_path": "A0001-0.png", "text": "x"}])
    with pytest.raises(CorpusError, match=r"columns \['image_path', 'text'\] found"):
        list(read_linked(path, root, 500))


def test_a_missing_file_says_where_to_get_it(root):
    with pytest.raises(CorpusError, match=r"no file .*huggingface"):
        list(read_linked(root / "nowhere", root, 500))


def test_what_is_read_is_an_example_or_set_aside_with_a_reason(root):
    entries = [{"image": f"ptb-xl/{n:05d}_hr-0.png", "conversations": TALK} for n in range(9)]
    counts = Counter(map(type, read(root, *entries)))
    assert counts == {Example: 4, Rejected: 5}
    assert all(json.dumps(item.reason) for item in read(root, *entries) if isinstance(item, Rejected))
