"""Stage `ask`: a trained model's answers, in the terminal, to questions about people's own recordings.

A recording is cleaned and cut into segments like the run's; each segment is answered, and the commonest answer is shown first,
with the others below it. Axes: S segments, T samples of a segment, n tokens of an ECG, A of an answer.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from ecgbyte_jax.ecg.formats import read_own
from ecgbyte_jax.ecg.records import Record
from ecgbyte_jax.ecg.signal import clean, segment
from ecgbyte_jax.errors import ConfigError, ExampleError, RecordError
from ecgbyte_jax.evaluate.answers import read_answers
from ecgbyte_jax.evaluate.generations import Answer
from ecgbyte_jax.evaluate.votes import elect
from ecgbyte_jax.explain.explain import look
from ecgbyte_jax.inputs.batches import prompt_batch
from ecgbyte_jax.inputs.prompt import ecg_room
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.sharding import batch_parts, put_whole
from ecgbyte_jax.report.attention import draw_attention
from ecgbyte_jax.report.save import check_picture, save_picture
from ecgbyte_jax.run.console import console
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import AttendSettings, EvalSettings, Settings, SignalSettings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.inquiry import Inquiry
from ecgbyte_jax.train.restore import Trained, open_trained

_LISTED = 6  # segments whose own answers are listed


@dataclass(frozen=True, eq=False)
class Subject:
    """What is asked about: one recording, or several in one prompt.

    name: of all of them; rate in Hz; seconds of a segment; segments, signals: of each segment the ECGs' ids int32 [n] and clean
    signals float64 [12, T] in mV.
    """

    name: str
    rate: float
    seconds: float
    segments: tuple[tuple[np.ndarray, ...], ...]
    signals: tuple[tuple[np.ndarray, ...], ...]


def ask(settings: Settings, workdir: Workdir, inquiry: Inquiry) -> None:
    """Answers every question on every recording; raises RecordError for an unusable one before the model is loaded."""
    _check(inquiry)
    recordings = [
        (Path(path).name.removesuffix(".hea").removesuffix(".dat"), *_segments(path, settings.signal, inquiry))
        for path in inquiry.records
    ]
    lineage.trained(settings, workdir).require()
    trained = open_trained(settings, workdir, settings.eval.checkpoint)
    subjects = _encode(trained, recordings, inquiry.together)
    for number, question in enumerate(_questions(inquiry)):
        for place, subject in enumerate(subjects):
            answers = _answer(trained, settings.eval, subject, question)
            best = elect([answer.text for answer in answers], [answer.log_prob for answer in answers])
            _show(subject, question, answers, best)
            if inquiry.picture:
                path = _picture_path(inquiry.picture, number * len(subjects) + place)
                _draw(trained, settings.attend, subject, question, answers[best], best, path)


def _check(inquiry: Inquiry) -> None:
    if not inquiry.records:
        raise ConfigError("--record is missing: the path of a WFDB record, a .csv or a .npy file; several separated by commas")
    if inquiry.together and len(inquiry.records) < 2:
        raise ConfigError("--together: one recording found, two expected, --record=FIRST,SECOND")
    if any(not question.strip() for question in inquiry.questions):
        raise ConfigError("--question: an empty one found; leave it out to be asked in the terminal")
    if inquiry.picture:
        check_picture(inquiry.picture, "--picture")


def _segments(path: str, how: SignalSettings, inquiry: Inquiry) -> tuple[float, np.ndarray]:
    """(rate in Hz, all clean segments float64 [S, 12, T] in mV) of one recording."""
    record: Record = read_own(path, inquiry.sample_rate, inquiry.leads, inquiry.units)
    try:
        signal = clean(record, how)
        return how.target_rate or record.sample_rate, segment(signal, how.segment_length)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error


def _encode(trained: Trained, recordings: list[tuple[str, float, np.ndarray]], together: bool) -> list[Subject]:
    ids = [trained.ecg_tokenizer.encode_batch(segments) for _, _, segments in recordings]
    groups = [range(len(recordings))] if together else [[place] for place in range(len(recordings))]
    subjects = []
    for group in groups:
        name = " and ".join(recordings[i][0] for i in group)
        rate, segments = recordings[group[0]][1:]
        # As many segments as the shortest recording has.
        tokens, signals = tuple(zip(*(ids[i] for i in group))), tuple(zip(*(recordings[i][2] for i in group)))
        subjects.append(Subject(name, rate, segments.shape[-1] / rate, tokens, signals))
    return subjects


def _questions(inquiry: Inquiry) -> Iterator[str]:
    """The given ones, or one from each line of the standard input."""
    if inquiry.questions:
        yield from inquiry.questions
        return
    in_terminal = sys.stdin.isatty()
    while True:
        if in_terminal:
            console.print("question (Ctrl-D ends): ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(trained: Trained, sampling: EvalSettings, subject: Subject, question: str) -> list[Answer]:
    """Greedy answers for all segments."""
    ids = trained.ids
    encoded = trained.text_tokenizer(question, add_special_tokens=False, split_special_tokens=True)
    question_ids = np.array(encoded.input_ids, np.int32)
    try:
        ecg_room(question_ids, np.empty(0), trained.max_length, ids.ends, len(subject.segments[0]))
    except ExampleError as error:
        raise ConfigError(f"--question: {error}; ask a shorter one") from error
    parts = batch_parts(trained.mesh)
    size = parts * -(-min(len(subject.segments), sampling.batch_size) // parts)
    prompts = [(ecgs, question_ids) for ecgs in subject.segments]
    answers = []
    for start in range(0, len(prompts), size):
        with jax.set_mesh(trained.mesh):
            batch, rows = prompt_batch(ids, prompts[start : start + size], size, trained.max_length)
            batch = put_whole(batch, trained.mesh)
            how = {"stop_ids": (ids.eos,), "pad_id": ids.pad, "return_log_probs": True}
            tokens, log_probs = generate(trained.model, **batch, max_new_tokens=sampling.max_new_tokens, **how)
        answers += read_answers(np.asarray(tokens)[rows], np.asarray(log_probs)[rows], ids.eos, trained.text_tokenizer)
    return answers


def _show(subject: Subject, question: str, answers: list[Answer], best: int) -> None:
    chosen = answers[best]
    agree = sum(answer.text == chosen.text for answer in answers)
    lines = [f"recording  {subject.name}: {len(answers)} segment(s) of {subject.seconds:g} s", f"question   {question}"]
    probability = math.exp(chosen.log_prob)
    lines.append(
        f"answer     {chosen.text or '(empty)'}   "
        f"[{agree} of {len(answers)} segments; probability {probability:.2f} in the surest]"
    )
    others = [i for i, answer in enumerate(answers) if answer.text != chosen.text]
    for i in others[:_LISTED]:
        span = f"{i * subject.seconds:g}-{(i + 1) * subject.seconds:g} s"
        lines.append(f"  {span:<9}{answers[i].text or '(empty)'}   [probability {math.exp(answers[i].log_prob):.2f}]")
    if len(others) > _LISTED:
        lines.append(f"  and {len(others) - _LISTED} more segments with other answers")
    lines.append("           research software, no medical device")
    console.print("\n".join(lines))


def _picture_path(picture: str, number: int) -> Path:
    """FILE.png for the first answer, FILE_2.png for the second."""
    path = Path(picture)
    return path if number == 0 else path.with_name(f"{path.stem}_{number + 1}{path.suffix}")


def _draw(
    trained: Trained, attend: AttendSettings, subject: Subject, question: str, answer: Answer, place: int, path: Path
) -> None:
    """The attention picture of the segment `place`, whose answer is shown; one for each of several recordings in one prompt."""
    view = look(trained, subject.segments[place], question, np.array(answer.tokens, np.int32), attend)
    start = place * subject.seconds
    title = f"{subject.name}, {start:g}-{start + subject.seconds:g} s. {question} {answer.text}"
    for number, (ecg, signal) in enumerate(zip(view.ecgs, subject.signals[place])):
        file = path if number == 0 else path.with_name(f"{path.stem}_ecg{number + 1}{path.suffix}")
        label = "attention of the answer, a sample"
        figure = draw_attention(signal, ecg.samples["attention"], subject.rate, seen=ecg.seen, label=label, title=title)
        save_picture(figure, file)
        console.print(f"picture    {file}")
