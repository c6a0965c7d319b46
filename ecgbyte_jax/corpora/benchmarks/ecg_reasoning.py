"""ECG-Reasoning-Benchmark (Oh et al. 2026, arXiv 2603.14326): step-by-step questions about recordings of PTB-XL and MIMIC."""

from collections.abc import Iterator
from pathlib import Path

from ecgbyte_jax.corpora.benchmarks.ecg_bench import OWN_SPLIT
from ecgbyte_jax.corpora.conversations import open_sets
from ecgbyte_jax.corpora.example import Example, Recording, Rejected
from ecgbyte_jax.corpora.tables import read_jsonl
from ecgbyte_jax.errors import CorpusError, ExampleError

FOLDER = "ECG-Reasoning-Benchmark"
_SETS = {"ptbxl": "ptbxl", "mimic_iv_ecg": "mimic"}  # data_source -> its folder in data.root
_STEPS = ("criterion_selection", "finding_identification", "ecg_grounding", "diagnostic_decision")  # of a loop, in order
_WHERE_TO_GET = (
    "ptbxl.jsonl and mimic_iv_ecg.jsonl are at https://huggingface.co/datasets/Jwoo5/ECG-Reasoning-Benchmark; set "
    "--config.data.conversations to their folder"
)


def read_reasoning(path: Path, root: Path, sample_rate: int) -> Iterator[Example | Rejected]:
    """Yields every question of the items in a folder's JSONL files, in order, all in the split "test".

    An item is a conversation: the diagnosis, then loops of a criterion, a finding, its leads, waves and measurements, and a
    decision. A question ends with its options; those of earlier ones are left out of the history, as with the published
    "condensed chat". root, sample_rate: as in `conversations.read_linked`. Raises CorpusError if there is no file.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.jsonl"))
    if not files:
        raise CorpusError(f"data.conversations: no .jsonl in '{path}'. {_WHERE_TO_GET}")
    find = open_sets(root, sample_rate)
    for file in files:
        for number, item in read_jsonl(file):
            id = f"{file.stem}/{number}"
            try:
                if isinstance(item, str):
                    raise ExampleError(item)
                folder, name = _recording(item)
                recording = find(id, folder, name)
                if isinstance(recording, Rejected):
                    yield recording
                else:
                    yield from _examples(id, recording, item)
            except (KeyError, TypeError, AttributeError) as error:
                yield Rejected(id, str(file), f"line {number}: not an item of this benchmark: {type(error).__name__} {error}")
            except ExampleError as error:
                yield Rejected(id, str(file), f"line {number}: {error}")


def _recording(item: dict) -> tuple[str, str]:
    """(folder of its set, name in it) of the recording that an item is about."""
    about = item["metadata"]
    if about["data_source"] not in _SETS:
        raise ExampleError(f"data_source {about['data_source']!r} found, one of {[*_SETS]} expected")
    ecg, patient = about["ecg_id"], about.get("subject_id", "")
    if about["data_source"] == "ptbxl":
        return "ptbxl", str(int(ecg))
    return "mimic", f"p{patient[:4]}/p{patient}/s{ecg}/{ecg}"


def _examples(id: str, recording: Recording, item: dict) -> list[Example]:
    asked = [(0, item["data"]["initial_diagnostic_question"])]
    for loop, steps in enumerate(item["data"]["reasoning"], start=1):
        for step in _STEPS:
            asked += [(loop, question) for question in (steps[step] if step == "ecg_grounding" else [steps[step]])]
    about = {"source": item["metadata"]["data_source"], "diagnosis": item["metadata"]["target_dx"], "turns": len(asked)}
    examples: list[Example] = []
    history: tuple[tuple[str, str], ...] = ()
    for turn, (loop, question) in enumerate(asked):
        answer = question["answer"] if isinstance(question["answer"], str) else ", ".join(question["answer"])
        meta = {"conversation": id, "turn": turn, "question_type": question["question_type"], OWN_SPLIT: recording.split}
        meta |= {"reasoning": about | {"loop": loop}}
        text = f"{question['question']} Options: {' | '.join(question['options'])}"
        previous = examples[-1].id if examples else ""
        known = recording.patient, "test", (recording.record,)
        examples.append(Example(f"{id}/{turn}", *known, text, answer, meta, history, previous))
        history += ((question["question"], answer),)
    return examples
