"""The corpora by name: the only place to register a new data set."""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ecgbyte_jax.corpora import mimic, ptbxl
from ecgbyte_jax.corpora.benchmarks.ecg_bench import read_tests
from ecgbyte_jax.corpora.benchmarks.ecg_reasoning import FOLDER as REASONING
from ecgbyte_jax.corpora.benchmarks.ecg_reasoning import read_reasoning
from ecgbyte_jax.corpora.conversations import read_linked
from ecgbyte_jax.corpora.ecg_chat import CONVERSATIONS, read_conversations
from ecgbyte_jax.corpora.ecg_qa import PUBLISHED_TYPES, QUESTION_TYPES, read_published_questions, read_questions
from ecgbyte_jax.corpora.ecg_qa_cot import FOLDER, read_reasons
from ecgbyte_jax.corpora.example import Example, Recording, Rejected
from ecgbyte_jax.corpora.labels.challenge import CPSC, CSN, read_challenge
from ecgbyte_jax.corpora.labels.code15 import read_exams
from ecgbyte_jax.corpora.labels.statements import read_statements
from ecgbyte_jax.corpora.measured.read import Unmeasured, read_recordings
from ecgbyte_jax.corpora.own import read_table
from ecgbyte_jax.errors import SettingsError
from ecgbyte_jax.settings import MIXTURE, DataSettings

SEVERAL = "several"  # sets of recordings, each in a folder of its name


class About(NamedTuple):
    """How people know a corpus, what it contains, and the set that its recordings are of; "" of none that is known."""

    name: str
    contents: str
    recordings: str = ""


CORPORA = {
    "ptbxl": About("PTB-XL", "real ECGs (Wagner et al. 2020) with their reports", "ptbxl"),
    "ptbxl_labels": About("PTB-XL", "questions by templates about the labels of real ECGs (Wagner et al. 2020)", "ptbxl"),
    "mimic": About("MIMIC-IV-ECG", "real ECGs with the machine's reports", "mimic"),
    "ecg_qa": About("ECG-QA on PTB-XL", "questions (Oh et al. 2023) about real ECGs (Wagner et al. 2020)", "ptbxl"),
    "ecg_qa_mimic": About("ECG-QA on MIMIC-IV-ECG", "questions (Oh et al. 2023) about real ECGs", "mimic"),
    "ecg_qa_cot": About(
        "ECG-QA-CoT", "questions about real ECGs of PTB-XL (Wagner et al. 2020), answered with reasons", "ptbxl"
    ),
    "ecg_chat": About("ECG-Chat", "conversations about real ECGs of MIMIC-IV-ECG", "mimic"),
    "cpsc": About("CPSC 2018", "questions by templates about the labels of real ECGs (Liu et al. 2018)", "cpsc"),
    "csn": About("Chapman-Shaoxing-Ningbo", "questions by templates about the labels of real ECGs (Zheng et al. 2020)", "csn"),
    "code15": About("CODE-15%", "questions by templates about six labels of real ECGs (Ribeiro et al. 2021)", "code15"),
    "ecg_instruct": About(
        "ECGInstruct", "conversations (Liu et al. 2024) about real ECGs of MIMIC-IV-ECG, PTB-XL and CODE-15%", SEVERAL
    ),
    "ecg_bench": About(
        "ECGBench", "tests (Liu et al. 2024) about real ECGs of PTB-XL, CODE-15%, CPSC 2018, CSN and Georgia", SEVERAL
    ),
    "ecg_reasoning": About(
        "ECG-Reasoning-Benchmark", "tests (Oh et al. 2026) about real ECGs of PTB-XL and MIMIC-IV-ECG", SEVERAL
    ),
    "ecg_grounding": About(
        "ECG-Grounding", "conversations (Lan et al. 2025) about real ECGs of MIMIC-IV-ECG, PTB-XL and CODE-15%", SEVERAL
    ),
    "measured": About("measured questions", "questions about the recordings of another set, with answers measured in them"),
    "own": About("a table of one's own", "whether its ECGs are real is not known here"),
    MIXTURE: About("a mixture", "several corpora"),
}


# Conversations about recordings of several sets, each with its file or folder in data.root.
_LINKED = {"ecg_instruct": "ECGInstruct.json", "ecg_bench": "ECGBench", "ecg_grounding": "ECG_Grounding_30k.json"}
TESTS = ("ecg_bench", "ecg_reasoning")  # published benchmarks: all of their questions are in the split "test"
REPORTS = ("ptbxl", "mimic")  # whose answers are reports
LABELLED = ("ptbxl_labels", "cpsc", "csn", "code15")  # whose questions are made by templates, from every label of a recording


def check_data(data: DataSettings) -> None:
    """Raises SettingsError that lists the data settings that the corpus, or one of a mixture, does not support."""
    problems = []
    for name in data.shares:
        try:
            check_data(data.part(name))
        except SettingsError as error:
            problems += [problem.replace("data.", f"data.parts.{name}.", 1) for problem in error.problems]
        if (corpus := data.part(name).corpus) in TESTS:
            problems.append(f"data.mixture.{name}: {corpus!r} found, which has only test questions; weight 0 expected")
    if data.corpus not in CORPORA:
        problems.append(f"data.corpus: {data.corpus!r} found, one of {(*CORPORA,)} expected")
    if not set(data.question_types) <= set(QUESTION_TYPES):
        problems.append(f"data.question_types: {data.question_types} found, some of {QUESTION_TYPES} expected")
    if data.folds and data.corpus in TESTS:
        problems.append(f"data.folds: {data.folds} found with {data.corpus!r}, whose questions are tests; 0 expected")
    if data.published_split and data.corpus == "own":
        problems.append("data.published_split: your own data has no published split; its table's field 'split' is used")
    if data.published_split and data.corpus == "ecg_qa_cot":
        problems.append("data.published_split: 'ecg_qa_cot' has no split of ECG-Byte's; its own is data.split 'official'")
    if data.published_split and data.corpus in (*_LINKED, "ecg_reasoning"):
        problems.append(
            f"data.published_split: {data.corpus!r} has no split of ECG-Byte's; that of each set's patients is used"
        )
    if data.corpus in LABELLED:
        problems += _label_problems(data)
    if data.published_split and data.corpus in ("ecg_qa", "ecg_qa_mimic"):
        problems += _published_problems(data)
    if data.corpus == "measured":
        problems += _measured_problems(data)
    if problems:
        raise SettingsError(problems)


def _measured_problems(data: DataSettings) -> Iterator[str]:
    others = (*(name for name in CORPORA if name not in ("measured", MIXTURE)),)
    if data.measured_of not in others:
        yield f"data.measured_of: {data.measured_of!r} found, one of {others} expected"
    if data.published_split:
        yield "data.published_split: 'measured' takes the split of its recordings' own set"


def _label_problems(data: DataSettings) -> Iterator[str]:
    if not set(data.question_types) <= set(PUBLISHED_TYPES):
        yield f"data.question_types: {data.question_types} found, some of {PUBLISHED_TYPES} expected for {data.corpus!r}"
    if data.published_split:
        yield f"data.published_split: {data.corpus!r} has no split of ECG-Byte's; its own patients' split is used"


def _published_problems(data: DataSettings) -> Iterator[str]:
    """Settings that contradict ECG-Byte's own split of ECG-QA: both wordings, three types of questions."""
    if not data.question_types or not set(data.question_types) <= set(PUBLISHED_TYPES):
        problem = f"data.published_split: data.question_types {data.question_types} found"
        yield f"{problem}, some of {PUBLISHED_TYPES} expected"
    if data.wording != "template":
        yield f"data.published_split: data.wording {data.wording!r} found, which has no effect here: both wordings are used"


def describe(data: Mapping[str, Any]) -> About:
    """How people know the corpus of these settings, as a stage keeps them; of a mixture its corpora."""
    about, mixture = CORPORA[data["corpus"]], data.get("mixture")
    if not mixture:
        return about
    names = [name for name in mixture if not isinstance(mixture, Mapping) or mixture[name]]
    parts = [data.get("parts", {}).get(name, {}).get("corpus", name) for name in names]
    return about._replace(contents="; ".join(f"{CORPORA[part].name}: {CORPORA[part].contents}" for part in parts))


def parts_among(data: DataSettings, corpora: Container[str]) -> set[str]:
    """The parts of a mixture that are one of these corpora; without a mixture "" where the corpus itself is."""
    if not data.mixture:
        return {""} if data.corpus in corpora else set()
    return {name for name in data.shares if data.part(name).corpus in corpora}


def recordings_of(data: DataSettings) -> str:
    """The set that the recordings of a corpus are of, see `About`."""
    return CORPORA[data.measured_of if data.corpus == "measured" else data.corpus].recordings


def read_corpus(data: DataSettings, root: Path, ecgqa_root: Path) -> Iterator[Example | Rejected | Unmeasured]:
    """Yields every example of the corpus `data.corpus`, no mixture, or its fault; of "measured", recordings to be measured.

    root: the folder of the recordings; ecgqa_root: that of ECG-QA. Raises CorpusError, or SettingsError for an unknown corpus.
    """
    match data.corpus:
        case "ptbxl":
            translations = Path(data.translations) if data.translations else None
            return ptbxl.read_reports(root, data.sample_rate, data.question, translations, data.published_split)
        case "ptbxl_labels":
            return read_statements(root, data.sample_rate, data.label_set, data.question_types)
        case "mimic":
            return mimic.read_reports(root, data.question)
        case "ecg_qa":
            return _read_questions(data, ecgqa_root / "ptbxl", ptbxl.read_database(root, data.sample_rate))
        case "ecg_qa_mimic":
            return _read_questions(data, ecgqa_root / "mimic-iv-ecg", mimic.read_record_list(root))
        case "ecg_qa_cot":
            folder = Path(data.conversations or root / FOLDER)
            return read_reasons(folder, ptbxl.read_database(root, data.sample_rate), data.question_types, _split(data))
        case "ecg_chat":
            return read_conversations(Path(data.conversations or root / CONVERSATIONS), root, data.published_split)
        case "cpsc" | "csn":
            return read_challenge(root, CPSC if data.corpus == "cpsc" else CSN, data.question_types)
        case "code15":
            return read_exams(root, data.question_types)
        case "ecg_bench":
            return read_tests(Path(data.conversations or root / _LINKED[data.corpus]), root, data.sample_rate)
        case "ecg_reasoning":
            return read_reasoning(Path(data.conversations or root / REASONING), root, data.sample_rate)
        case "ecg_instruct" | "ecg_grounding":
            return read_linked(Path(data.conversations or root / _LINKED[data.corpus]), root, data.sample_rate)
        case "measured":
            return read_recordings(read_corpus(_measured_of(data), root, ecgqa_root), data.question_types)
        case "own":
            return read_table(Path(data.table), root)
        case other:
            raise SettingsError([f"data.corpus: {other!r} found, one of {(*CORPORA,)} expected"])


def _measured_of(data: DataSettings) -> DataSettings:
    """The settings of the corpus whose recordings are measured, with all its questions: they are not asked."""
    return replace(data, corpus=data.measured_of, question_types=())


def _read_questions(
    data: DataSettings, folder: Path, recordings: Iterable[tuple[str, Recording | Rejected]]
) -> Iterator[Example | Rejected]:
    if data.published_split:
        return read_published_questions(folder, recordings, data.question_types)
    return read_questions(folder, recordings, data.wording, data.question_types, _split(data))


def _split(data: DataSettings) -> str:
    """Which split ECG-QA is read with: its own where cross-validation replaces it, as it rejects no comparison."""
    return "official" if data.folds else data.split
