"""Conversations about recordings of several sets, named by paths: ECGInstruct, ECGBench (PULSE) and ECG-Grounding (GEM)."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from ecgbyte_jax.corpora.ecg_chat import one_by_one, read_turns
from ecgbyte_jax.corpora.example import MISSING, Example, Recording, Rejected, split_of, wfdb_record
from ecgbyte_jax.corpora.labels import challenge, code15
from ecgbyte_jax.corpora.labels.questions import Labelled
from ecgbyte_jax.corpora.ptbxl import read_database
from ecgbyte_jax.corpora.tables import read_json_list
from ecgbyte_jax.errors import ConfigError, CorpusError, ExampleError

_MARKERS = "<image>", "<ecg>"
_PATHS = "ecg", "image_path", "image"  # the fields that name a recording, the first of them that is there
_COLUMNS = ["image_path", "conversations"]  # of parquet files; they hold the images too
# How the first part of a path begins, or the folder of a file whose paths name no set, and whose folder in data.root that is.
_SETS = {
    "mimic": "mimic",
    "ptb": "ptbxl",
    "ecg_ptbxl": "ptbxl",
    "ecgqa": "ptbxl",
    "code15": "code15",
    "cpsc": "cpsc",
    "csn": "csn",
    "champan": "csn",  # as GEM writes it
    "chapman": "csn",
    "g12": "georgia",
    "georgia": "georgia",
}
_END = r"(?:-\d+)?(?:\.\w+)?"  # of an image: its number and extension
RECORD_NAMES = {
    "mimic": re.compile(rf"(?:.*/)?(p\d{{4}}/p\d{{8}}/s\d{{8}}/\d{{8}}){_END}", re.ASCII),
    "ptbxl": re.compile(rf"(?:.*/)?0*([1-9]\d{{0,4}})(?:_[hl]r)?{_END}", re.ASCII),
    "code15": re.compile(rf"(?:.*/)?(\d{{1,18}}){_END}", re.ASCII),
    "cpsc": re.compile(rf"(?:.*/)?([AQ]\d{{4}}){_END}", re.ASCII),
    "csn": re.compile(rf"(?:.*/)?(JS\d{{5}}){_END}", re.ASCII),
    "georgia": re.compile(rf"(?:.*/)?(E\d{{5}}){_END}", re.ASCII),
}
_CHALLENGES = {"cpsc": challenge.CPSC, "csn": challenge.CSN, "georgia": challenge.GEORGIA}
_WHERE_TO_GET = (
    "ECGInstruct.json is at https://huggingface.co/datasets/PULSE-ECG/ECGInstruct, ECGBench's parquet files at "
    "https://huggingface.co/datasets/PULSE-ECG/ECGBench, ECG-Grounding's JSON files at "
    "https://huggingface.co/datasets/LANSG/ECG-Grounding; set --config.data.conversations to the file or the folder"
)


def locate(path: str, folder: str = "") -> tuple[str, str]:
    """(set, name in it) of the recording that a path names; raises ExampleError if it names none.

    The sets are mimic (name: path below files/), ptbxl (ecg_id), code15 (exam_id), cpsc, csn and georgia (record). folder: that
    of the file, which tells the set where the path does not: ECGBench's cpsc-test and others.
    """
    for text in (path.partition("/")[0], folder):
        for beginning, name in _SETS.items():
            if text.lower().startswith(beginning) and (found := RECORD_NAMES[name].fullmatch(path)):
                return name, found[1]
    raise ExampleError(f"{path!r} found, the path of a recording of {sorted(RECORD_NAMES)} expected")


def read_linked(
    path: Path, root: Path, sample_rate: int, name_of: Callable[[Path], str | None] | None = None
) -> Iterator[Example | Rejected]:
    """Yields every question of every conversation in a JSON or parquet file, or in those of a folder, in file order.

    root: the folder of the sets' folders mimic, ptbxl, code15, cpsc, csn and georgia; conversations about others are rejected.
    Patients and splits are those of the sets; PTB-XL is read at `sample_rate` Hz. name_of: what a file of a folder is called,
    which is the type of its questions and tells the set where paths do not, by default its folder; None: it is not read. Raises
    CorpusError if a file is missing or not in its form, ConfigError without pyarrow or h5py where they are needed.
    """
    files = [path] if path.is_file() else sorted([*path.rglob("*.parquet"), *path.rglob("*.json")])
    if not files:
        raise CorpusError(f"data.conversations: no file '{path}', and no .json or .parquet below it. {_WHERE_TO_GET}")
    find = open_sets(root, sample_rate)
    for file in files:
        name = name_of(file) if name_of else file.parent.name
        if name is None:
            continue
        folder = name if path.is_dir() else ""
        entries = _read_parquet(file) if file.suffix == ".parquet" else read_json_list(file)
        for number, entry in enumerate(entries):
            id = f"{folder}/{file.stem}/{number}" if folder else str(number)
            try:
                known, record, turns = _conversation(entry, name)
                recording = find(id, known, record)
                if isinstance(recording, Rejected):
                    yield recording
                else:
                    yield from one_by_one(id, recording, turns, question_type=folder or known)
            except ExampleError as error:
                yield Rejected(id, str(file), f"entry {number}: {error}")


def open_sets(root: Path, sample_rate: int) -> Callable[[str, str, str], Recording | Rejected]:
    """Finds recordings for an example's id by set and name, as `locate` gives them, each set read once.

    A recording that is not there, or is unusable, rejects the example. root, sample_rate: as in `read_linked`. Raises
    CorpusError where there is no such folder.
    """
    if not root.is_dir():
        raise CorpusError(f"data.root: no folder '{root}', with the sets in {sorted(RECORD_NAMES)} expected")
    open_set = cache(partial(_recordings, root, sample_rate))

    def find(id: str, known: str, name: str) -> Recording | Rejected:
        recording = _mimic(root, name) if known == "mimic" else open_set(known).get(name)
        if recording is None:
            return Rejected(id, str(root / known), f"{MISSING}: {name!r} is not in this set")
        return replace(recording, id=id) if isinstance(recording, Rejected) else recording

    return find


def _conversation(entry: object, folder: str) -> tuple[str, str, list[tuple[str, str]]]:
    """(set, name in it) of a conversation's recording, and its questions with their answers."""
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise ExampleError("an object with the fields ecg or image (a path) and conversations (a list) expected")
    path = next((entry[field] for field in _PATHS if entry.get(field)), None)
    if not isinstance(path, str):
        raise ExampleError(f"{path!r} found in {' or '.join(_PATHS)}, a path expected")
    return *locate(path, folder), read_turns(_texts(entry["conversations"]), _MARKERS)


def _texts(conversation: list) -> list:
    """Turns whose value is one text: in ECGBench's about ECG-QA it is a list, of a question's parts, or of several answers."""
    joined = []
    for turn in conversation:
        value = turn.get("value") if isinstance(turn, dict) else None
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            turn = turn | {"value": ("" if turn.get("from") == "human" else ", ").join(value)}
        joined.append(turn)
    return joined


def _mimic(root: Path, name: str) -> Recording | None:
    """A recording of MIMIC-IV-ECG, whose path tells its patient."""
    patient = name.split("/")[1]
    if not (root / "mimic").is_dir():
        return None
    return Recording(f"mimic {patient}", split_of(patient), wfdb_record(root / "mimic", f"files/{name}"), "")


def _recordings(root: Path, sample_rate: int, name: str) -> Mapping[str, Recording | Rejected]:
    """The recordings of a set by their names; none if its folder is not there."""
    folder = root / name
    if not folder.is_dir():
        return {}
    items: Iterator[tuple[str, Recording | Rejected]]
    if name == "ptbxl":
        items = read_database(folder, sample_rate)
    elif name == "code15":
        items = map(_unlabelled, code15.read_labelled(folder))
    else:
        items = map(_unlabelled, challenge.read_labelled(folder, _CHALLENGES[name]))
    # Patients of different sets may have the same number.
    return {id: r if isinstance(r, Rejected) else replace(r, patient=f"{name} {r.patient}") for id, r in items}


def _unlabelled(item: Labelled | Rejected) -> tuple[str, Recording | Rejected]:
    return item.id, item if isinstance(item, Rejected) else _recording(item)


def _recording(item: Labelled) -> Recording:
    return Recording(item.patient, item.split, item.record, "", item.stratum)


def _read_parquet(path: Path) -> Iterator[object]:
    """The rows of a file, without its images; raises CorpusError if it has no conversations, or is damaged."""
    if find_spec("pyarrow") is None:
        raise ConfigError(f"{path} needs pyarrow: install the extra, pip install -e '.[parquet]'")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            found = file.schema_arrow.names
            if not {*_COLUMNS} <= {*found}:
                raise CorpusError(f"{path}: columns {found} found, {' and '.join(_COLUMNS)} expected")
            for batch in file.iter_batches(batch_size=256, columns=_COLUMNS):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise CorpusError(f"{path}: not readable as parquet, or truncated: {str(error).splitlines()[0]}") from error
