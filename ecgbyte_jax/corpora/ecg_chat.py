"""ECG-Chat (Zhao et al. 2024): conversations about recordings of MIMIC-IV-ECG, one example per question."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ecgbyte_jax.corpora.example import Example, Recording, Rejected, split_of, wfdb_record
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.corpora.tables import read_json_list
from ecgbyte_jax.errors import CorpusError, ExampleError

CONVERSATIONS = "pretrain_mimic.json"
_MARKERS = ("<ecg>",)
_WHERE_TO_GET = (
    "ECG-Chat's files are listed at https://github.com/YubaoZhao/ECG-Chat; "
    "set --config.data.conversations to pretrain_mimic.json"
)


def read_conversations(path: Path, root: Path, published: bool = False) -> Iterator[Example | Rejected]:
    """Yields every question of every conversation, in file order, about recordings in `root` (MIMIC-IV-ECG's folder).

    A later question has the previous turns as its history, so that its references can be resolved. Ids are the conversation's
    number and the turn's: "12/0". Patients are named by their folder (p10000032) and split by a hash (`split_of`). published:
    line breaks in questions are dropped instead of replaced by spaces, and surrounding whitespace is kept. Raises CorpusError
    if the file is missing or not a JSON list.
    """
    if not path.is_file():
        raise CorpusError(f"data.conversations: no file '{path}'. {_WHERE_TO_GET}")
    if not root.is_dir():
        raise CorpusError(f"data.root: no folder '{root}', that of MIMIC-IV-ECG expected")
    for number, entry in enumerate(read_json_list(path)):
        try:
            yield from _examples(str(number), entry, root, published)
        except ExampleError as error:
            yield Rejected(str(number), str(path), f"entry {number}: {error}")


def _examples(id: str, entry: object, root: Path, published: bool) -> list[Example]:
    """All questions of one conversation; raises ExampleError if one of them is unusable."""
    if not isinstance(entry, dict) or not isinstance(entry.get("ecg"), str) or not isinstance(entry.get("conversations"), list):
        raise ExampleError("an object with the fields ecg (a path) and conversations (a list) expected")
    record = _record(entry["ecg"], root)
    patient = next((part for part in reversed(record.name.split("/")[:-1]) if part[:1] == "p" and part[1:].isdigit()), "")
    if not patient:
        raise ExampleError(f"ecg {entry['ecg']!r} found, a path through the patient's folder (p10000032/...) expected")
    turns = read_turns(entry["conversations"], _MARKERS, published)
    return one_by_one(id, Recording(patient, split_of(patient), record, ""), turns)


def one_by_one(id: str, about: Recording, turns: list[tuple[str, str]], **meta: object) -> list[Example]:
    """An example for each question of a conversation about one recording, with those before it as its history.

    Raises ExampleError if one of them is unusable, or there is none.
    """
    if not turns:
        raise ExampleError("the conversation is empty")
    ids = ["", *(f"{id}/{number}" for number in range(len(turns)))]
    places = [{"conversation": id, "turn": turn} | meta for turn in range(len(turns))]
    known = about.patient, about.split, (about.record,)
    return [
        Example(ids[turn + 1], *known, *texts, places[turn], tuple(turns[:turn]), ids[turn], (about.stratum,))
        for turn, texts in enumerate(turns)
    ]


def _record(name: str, root: Path) -> WfdbRecord:
    """The record below files/, whether or not `name` includes that folder."""
    return wfdb_record(root, name if PurePosixPath(name).parts[:1] == ("files",) else f"files/{name}")


def read_turns(conversation: list[Any], markers: Sequence[str], published: bool = False) -> list[tuple[str, str]]:
    """(question, answer) pairs, questions without line breaks and the markers of an ECG; raises ExampleError."""
    speakers: list[Any] = [turn.get("from") if isinstance(turn, dict) else None for turn in conversation]
    texts: list[Any] = [turn.get("value") if isinstance(turn, dict) else None for turn in conversation]
    if speakers != ["human", "gpt"] * (len(texts) // 2) or not all(isinstance(text, str) for text in texts):
        raise ExampleError(f"turns from {speakers} found, alternating texts from human and gpt expected")
    questions, answers = texts[::2], texts[1::2]
    for marker in markers:
        questions = [question.replace(marker, "") for question in questions]
    if published:
        return [(question.replace("\n", ""), answer) for question, answer in zip(questions, answers)]
    return [(q.replace("\n", " ").strip(), a.strip()) for q, a in zip(questions, answers)]
