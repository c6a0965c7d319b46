"""`--stage=ask`: a trained model's answers to questions about people's own recordings, in the terminal.

A recording is cleaned as the run's were and cut into the run's segments; each segment is answered, and the answer that most of
them share is told, with the others below it. Axes: S segments, T samples of a segment, A tokens of an answer.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from ecgbyte_jax.ecg.own import read_own
from ecgbyte_jax.ecg.records import Record
from ecgbyte_jax.ecg.signal import clean, segment
from ecgbyte_jax.errors import ConfigError, ExampleError, RecordError
from ecgbyte_jax.inputs.batches import prompt_batch
from ecgbyte_jax.inputs.prompt import ecg_room
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.report.attention import draw_attention
from ecgbyte_jax.report.save import check_picture, save_picture
from ecgbyte_jax.run.attend import Trained, look, open_trained
from ecgbyte_jax.run.inquiry import Inquiry
from ecgbyte_jax.run.logbook import console
from ecgbyte_jax.run.quantize import Cleaning
from ecgbyte_jax.run.sharding import batch_parts, put_whole

_SHOWN = 6  # segments whose own answers are listed


@dataclass(frozen=True, eq=False)
class Shown:
    """What is asked about: the recording's name (or names), the rate in Hz, seconds of a segment, and of each segment the ECGs'
    ids [n] and their clean signals, float64 [12, T] in mV.
    """

    name: str
    rate: float
    seconds: float
    segments: tuple[tuple[np.ndarray, ...], ...]
    signals: tuple[tuple[np.ndarray, ...], ...]


@dataclass(frozen=True, eq=False)
class Answer:
    """One segment's answer: its text, its ids int32 [A] without the end, and its log-probability."""

    text: str
    ids: np.ndarray
    log_prob: float


def ask(config: ConfigDict, workdir: Path, inquiry: Inquiry) -> None:
    """Answers every question on every recording; raises RecordError for one that cannot be used, before the model is loaded."""
    _check(inquiry)
    cleaning = Cleaning.of(config)
    read = [
        (Path(path).name.removesuffix(".hea").removesuffix(".dat"), *_segments(path, cleaning, inquiry))
        for path in inquiry.records
    ]
    trained = open_trained(config, workdir, config.eval.checkpoint)
    shown = _encode(trained, read, inquiry.together)
    for number, question in enumerate(_questions(inquiry)):
        for place, one in enumerate(shown):
            answers = _answer(trained, config, one, question)
            best = _agreed(answers)
            _tell(one, question, answers, best)
            if inquiry.picture:
                _draw(
                    trained, config, one, question, answers, best, _picture_path(inquiry.picture, number * len(shown) + place)
                )


def _check(inquiry: Inquiry) -> None:
    if not inquiry.records:
        raise ConfigError("--record is missing: the path of a WFDB record, a .csv or a .npy file; several parted by commas")
    if inquiry.together and len(inquiry.records) < 2:
        raise ConfigError("--together: one recording found, two wanted, --record=FIRST,SECOND")
    if any(not question.strip() for question in inquiry.questions):
        raise ConfigError("--question: an empty one found; leave it out to be asked in the terminal")
    if inquiry.picture:
        check_picture(inquiry.picture, "--picture")


def _segments(path: str, cleaning: Cleaning, inquiry: Inquiry) -> tuple[float, np.ndarray]:
    """(rate in Hz, clean segments float64 [S, 12, T] in mV) of one recording, all that it is long."""
    record: Record = read_own(path, inquiry.sample_rate, inquiry.leads, inquiry.units)
    try:
        signal = clean(record, cleaning.config)
        return cleaning.config.target_rate or record.sample_rate, segment(signal, cleaning.segment_length)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error


def _encode(trained: Trained, read: list[tuple[str, float, np.ndarray]], together: bool) -> list[Shown]:
    ids = [trained.ecg_tokenizer.encode_batch(segments) for _, _, segments in read]
    groups = [range(len(read))] if together else [[place] for place in range(len(read))]
    shown = []
    for group in groups:
        name = " and ".join(read[i][0] for i in group)
        rate, segments = read[group[0]][1:]
        both = tuple(zip(*(ids[i] for i in group))), tuple(zip(*(read[i][2] for i in group)))  # as many as the shortest has
        shown.append(Shown(name, rate, segments.shape[-1] / rate, *both))
    return shown


def _questions(inquiry: Inquiry) -> Iterator[str]:
    """Those given, or a line each of the terminal until its end."""
    if inquiry.questions:
        yield from inquiry.questions
        return
    asked = sys.stdin.isatty()
    while True:
        if asked:
            console.print("question (Ctrl-D ends): ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _answer(trained: Trained, config: ConfigDict, shown: Shown, question: str) -> list[Answer]:
    """Greedy answers of all segments."""
    text, ids = trained.text_tokenizer, trained.ids
    asked = text(question, add_special_tokens=False, split_special_tokens=True).input_ids
    question_ids = np.array(asked, np.int32)
    try:
        ecg_room(question_ids, np.empty(0), trained.max_length, len(shown.segments[0]))
    except ExampleError as error:
        raise ConfigError(f"--question: {error}; ask a shorter one") from error
    parts = batch_parts(trained.mesh)
    rows = parts * -(-min(len(shown.segments), config.eval.batch_size) // parts)
    prompts = [(ecgs, question_ids) for ecgs in shown.segments]
    answers = []
    for start in range(0, len(prompts), rows):
        some = prompts[start : start + rows]
        with jax.set_mesh(trained.mesh):
            batch, places = prompt_batch(ids, some, rows, trained.max_length)
            batch = put_whole(batch, trained.mesh)
            how = {"stop_ids": (ids.eos,), "pad_id": ids.pad, "return_log_probs": True}
            tokens, log_probs = generate(trained.model, **batch, max_new_tokens=config.eval.max_new_tokens, **how)
        for row, log_prob in zip(np.asarray(tokens)[places], np.asarray(log_probs)[places]):
            ended = np.flatnonzero(row == ids.eos)
            found = row[: ended[0]] if len(ended) else row
            answers.append(Answer(text.decode(found, skip_special_tokens=True).strip(), found, float(log_prob.sum())))
    return answers


def _agreed(answers: list[Answer]) -> int:
    """The surest of the segments that gave the answer given most often; of equally common ones the surest."""
    texts = [answer.text for answer in answers]
    return max(range(len(answers)), key=lambda i: (texts.count(texts[i]), answers[i].log_prob, -i))


def _tell(shown: Shown, question: str, answers: list[Answer], best: int) -> None:
    chosen = answers[best]
    agree = sum(answer.text == chosen.text for answer in answers)
    lines = [f"recording  {shown.name}: {len(answers)} segment(s) of {shown.seconds:g} s", f"question   {question}"]
    share = math.exp(chosen.log_prob)
    lines.append(
        f"answer     {chosen.text or '(empty)'}   [{agree} of {len(answers)} segments; probability {share:.2f} in the surest]"
    )
    others = [i for i, answer in enumerate(answers) if answer.text != chosen.text]
    for i in others[:_SHOWN]:
        span = f"{i * shown.seconds:g}-{(i + 1) * shown.seconds:g} s"
        lines.append(f"  {span:<9}{answers[i].text or '(empty)'}   [probability {math.exp(answers[i].log_prob):.2f}]")
    if len(others) > _SHOWN:
        lines.append(f"  and {len(others) - _SHOWN} more segments with other answers")
    lines.append("           research software, no medical device")
    console.print("\n".join(lines), markup=False)


def _picture_path(picture: str, number: int) -> Path:
    """FILE.png for the first answer, FILE_2.png for the second."""
    path = Path(picture)
    return path if number == 0 else path.with_name(f"{path.stem}_{number + 1}{path.suffix}")


def _draw(
    trained: Trained, config: ConfigDict, shown: Shown, question: str, answers: list[Answer], best: int, path: Path
) -> None:
    """The attention picture of the segment whose answer is told; one picture each where two recordings are compared."""
    view = look(trained, shown.segments[best], question, answers[best].ids, config)
    start = best * shown.seconds
    title = f"{shown.name}, {start:g}-{start + shown.seconds:g} s. {question} {answers[best].text}"
    for number, (ecg, signal) in enumerate(zip(view.ecgs, shown.signals[best])):
        file = path if number == 0 else path.with_name(f"{path.stem}_ecg{number + 1}{path.suffix}")
        label = "attention of the answer, a sample"
        save_picture(
            draw_attention(signal, ecg.samples["attention"], shown.rate, seen=ecg.seen, label=label, title=title), file
        )
        console.print(f"picture    {file}", markup=False)
