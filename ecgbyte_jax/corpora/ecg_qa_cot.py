"""ECG-QA-CoT (Langer et al. 2025): ECG-QA's questions about PTB-XL, answered with the reasons before the answer."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ecgbyte_jax.corpora.example import Example, Recording, Rejected
from ecgbyte_jax.corpora.tables import read_csv
from ecgbyte_jax.errors import CorpusError, ExampleError

FOLDER = "ecg_qa_cot"
_FILES = {"train": "ecg_qa_cot_train.csv", "valid": "ecg_qa_cot_val.csv", "test": "ecg_qa_cot_test.csv"}
_COLUMNS = {"ecg_id", "question_type", "template_id", "question", "answer", "rationale"}
_WHERE_TO_GET = (
    "OpenTSLM's ecg_qa_cot.zip (see https://github.com/StanfordBDHG/OpenTSLM) holds the three; set "
    "--config.data.conversations to its folder"
)


def read_reasons(
    folder: Path, recordings: Iterable[tuple[str, Recording | Rejected]], question_types: tuple[str, ...], split: str
) -> Iterator[Example | Rejected]:
    """Yields the questions of the given types (all if empty), in file order.

    folder: of the three CSV files; recordings: of PTB-XL, with their ecg_id; split: "official" for that of the files, "folds"
    for that of the recordings. An answer is the rationale, which ends with "Answer: " and ECG-QA's own answer, which is also
    the field final_answer. Question types have " with reasons" added, as their answers are no longer closed. Raises CorpusError
    if a file or a column is missing.
    """
    missing = [name for name in _FILES.values() if not (folder / name).is_file()]
    if missing:
        raise CorpusError(f"data.conversations: no {missing[0]} in '{folder}'. {_WHERE_TO_GET}")
    by_id = dict(recordings)
    for name, file in _FILES.items():
        for line, row in read_csv(folder / file, _COLUMNS):
            id = f"{name}/{line}"
            try:
                if isinstance(row, str):
                    raise ExampleError(row)
                if not question_types or row["question_type"] in question_types:
                    yield _example(id, row, by_id, name if split == "official" else None)
            except ExampleError as error:
                yield Rejected(id, str(folder / file), f"line {line}: {error}")


def _example(
    id: str, row: dict[str, str], recordings: Mapping[str, Recording | Rejected], split: str | None
) -> Example | Rejected:
    """One question; `split` None uses that of the recording."""
    ecg_id = re.fullmatch(r"\[?\s*(\d{1,9})(?:\.0)?\s*\]?", row["ecg_id"].strip(), re.ASCII)
    if not ecg_id:
        raise ExampleError(f"ecg_id {row['ecg_id']!r} found, one number expected")
    recording = recordings.get(ecg_id[1])
    if recording is None:
        raise ExampleError(f"ecg_id {ecg_id[1]} is not in the database of recordings")
    if isinstance(recording, Rejected):
        return Rejected(id, recording.file, recording.reason)
    rationale, final = row["rationale"].strip(), row["answer"].strip()
    if not rationale or not final:
        raise ExampleError("the rationale or the answer is empty")
    answer = rationale if re.search(r"Answer:\s*\S", rationale) else f"{rationale} Answer: {final}"
    meta = {"question_type": f"{row['question_type']} with reasons", "template_id": row["template_id"], "final_answer": final}
    about = recording.patient, split or recording.split, (recording.record,)
    return Example(id, *about, row["question"], answer, meta, strata=(recording.stratum,))
