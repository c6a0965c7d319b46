"""ECG-Chat (Zhao et al. 2024): conversations about recordings of MIMIC-IV-ECG, one example a question."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ecgbyte_jax.corpora.example import Example, Rejected, record_path, split_of
from ecgbyte_jax.corpora.tables import read_json_list
from ecgbyte_jax.errors import CorpusError, ExampleError

CONVERSATIONS = "pretrain_mimic.json"
_ECG = "<ecg>"
_WHERE_TO_GET = (
    "ECG-Chat's files are named at https://github.com/YubaoZhao/ECG-Chat; "
    "set --config.data.conversations to pretrain_mimic.json"
)


def read_conversations(path: Path, root: Path, published: bool = False) -> Iterator[Example | Rejected]:
    """Every question of every conversation, in the file's order, about the recordings below `root` (MIMIC-IV-ECG's folder).

    A later question is preceded by the turns before it, so that what it refers to can be read. Ids are the conversation's
    number and the turn's: "12/0". Patients are named by their folder (p10000032) and split by a hash (`split_of`). published:
    line breaks in questions are dropped instead of becoming spaces, and white space around texts is kept. Raises CorpusError
    where the file is missing or no JSON list.
    """
    if not path.is_file():
        raise CorpusError(f"data.conversations: no file '{path}'. {_WHERE_TO_GET}")
    if not root.is_dir():
        raise CorpusError(f"data.root: no folder '{root}', that of MIMIC-IV-ECG wanted")
    for number, entry in enumerate(read_json_list(path)):
        try:
            yield from _examples(str(number), entry, root, published)
        except ExampleError as error:
            yield Rejected(str(number), str(path), f"entry {number}: {error}")


def _examples(id: str, entry: object, root: Path, published: bool) -> list[Example]:
    """All questions of one conversation; raises ExampleError where one of them cannot be used."""
    if not isinstance(entry, dict) or not isinstance(entry.get("ecg"), str) or not isinstance(entry.get("conversations"), list):
        raise ExampleError("an object with the fields ecg (a path) and conversations (a list) wanted")
    record = _record(entry["ecg"], root)
    patient = next((part for part in reversed(record.parts[:-1]) if part[:1] == "p" and part[1:].isdigit()), "")
    if not patient:
        raise ExampleError(f"ecg {entry['ecg']!r} found, a path through the patient's folder (p10000032/...) wanted")
    examples, before = [], []
    for turn, (question, answer) in enumerate(_turns(entry["conversations"], published)):
        meta = {"conversation": id, "turn": turn}
        asked = "\n".join([*before, question])
        examples.append(Example(f"{id}/{turn}", patient, split_of(patient), (record,), asked, answer, meta))
        before += [question, answer]
    if not examples:
        raise ExampleError("the conversation is empty")
    return examples


def _record(name: str, root: Path) -> Path:
    """The record; paths are below files/, with or without that folder's name."""
    return record_path(root, name if PurePosixPath(name).parts[:1] == ("files",) else f"files/{name}")


def _turns(conversation: list, published: bool) -> list[tuple[str, str]]:
    """(question, answer) pairs, questions without the mark <ecg> and line breaks."""
    told = [(turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None) for turn in conversation]
    speakers = [speaker for speaker, _ in told]
    if speakers != ["human", "gpt"] * (len(told) // 2) or not all(isinstance(value, str) for _, value in told):
        raise ExampleError(f"turns from {speakers} found, texts from human and gpt by turns wanted")
    questions, answers = ([value for _, value in told[first::2]] for first in (0, 1))
    if published:
        return [(question.replace("\n", "").replace(_ECG, ""), answer) for question, answer in zip(questions, answers)]
    return [(q.replace(_ECG, "").replace("\n", " ").strip(), a.strip()) for q, a in zip(questions, answers)]
