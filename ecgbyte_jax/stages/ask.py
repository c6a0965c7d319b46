"""Stage `ask`: a trained model's answers, in the terminal, to questions about people's own recordings.

A recording is cleaned and cut into segments like the run's; each segment is answered, and the commonest answer is shown first,
with the others below it. Axes: S segments, T samples of a segment, n tokens of an ECG, A of an answer.
"""

import json
import math
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import jax
import numpy as np

from ecgbyte_jax.asking.reply import NOT_TO_USE, Reply, by_segment, doubts, vote
from ecgbyte_jax.asking.subject import FOREIGN, Subject, with_foreign
from ecgbyte_jax.asking.worth import Worth
from ecgbyte_jax.ecg.formats.content import EXPECTED
from ecgbyte_jax.errors import ConfigError, ExampleError, RecordError
from ecgbyte_jax.evaluate.answers import read_answers
from ecgbyte_jax.evaluate.familiar import Familiar
from ecgbyte_jax.evaluate.generations import Answer
from ecgbyte_jax.explain.explain import look
from ecgbyte_jax.inputs.batches import prompt_batch
from ecgbyte_jax.inputs.recording import Recording, read_list, read_recording
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.sharding import batch_parts, put_whole
from ecgbyte_jax.report.attention import draw_attention
from ecgbyte_jax.report.save import check_picture, save_picture
from ecgbyte_jax.run.console import console
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import AttendSettings, EvalSettings, Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.inquiry import Inquiry, check_question, read_questions
from ecgbyte_jax.train.restore import Trained, open_trained
from ecgbyte_jax.train.vectors import check_drawable

_LISTED = 6  # segments whose own answers are listed
_SHOWN_QUESTIONS = 8  # of the training, where questions are typed


def ask(settings: Settings, workdir: Workdir, inquiry: Inquiry) -> None:
    """Answers every question on every recording, after what was read and what the run's answers are worth.

    Raises RecordError for an unusable recording before the model is loaded; one of a list is reported, the others are
    answered, and the error, with their number, is raised at the end.
    """
    _check(inquiry)
    if inquiry.picture:
        check_drawable(settings, "--picture")
    typed = not inquiry.questions and sys.stdin.isatty()
    try:
        _ask(settings, workdir, inquiry, typed)
    except KeyboardInterrupt:
        if not typed:
            raise
        console.print()  # a conversation ends quietly


def _ask(settings: Settings, workdir: Workdir, inquiry: Inquiry, typed: bool) -> None:
    listed = read_list(inquiry.record_list) if inquiry.record_list else []
    named = [_read(path, settings, workdir, inquiry) for path in inquiry.records]
    lineage.trained(settings, workdir).require()
    trained = open_trained(settings, workdir, settings.eval.checkpoint)
    familiar = Familiar.of(workdir.shards, settings.seed)
    worth = Worth.of(settings, workdir)
    console.print("\n".join([f"run        {workdir.root}: {worth.sentence}", *(f"  warning  {w}" for w in worth.warnings)]))
    several = len(named) + len(listed) > 1
    refused: list[str] = []
    later = _read_each(listed, settings, workdir, inquiry, refused)
    for number, (subject, question) in enumerate(_pairs(_subjects(trained, named, later, inquiry.together), inquiry, familiar)):
        picture = _picture_path(inquiry.picture, number) if inquiry.picture else None
        try:
            reply = _reply(trained, settings, subject, question, familiar, picture)
        except ConfigError as error:
            if not typed:
                raise
            console.print(str(error))
            continue
        if inquiry.format == "json":
            print(json.dumps(_as_json(subject, reply, worth)), flush=True)
        else:
            _show(subject, reply, several, typed)
    if refused:
        raise RecordError(f"{inquiry.record_list}: {len(refused)} of {len(listed)} recordings are unusable, see above")


def _check(inquiry: Inquiry) -> None:
    if not inquiry.records and not inquiry.record_list:
        raise ConfigError(f"--record is missing: {EXPECTED} expected; several separated by commas, or in --record_list=FILE")
    if inquiry.record_list and (not inquiry.questions or inquiry.together):
        raise ConfigError(
            "--record_list: found without --question or with --together; each recording is asked every --question"
        )
    if inquiry.together and len(inquiry.records) < 2:
        raise ConfigError("--together: one recording found, two expected, --record=FIRST,SECOND")
    for question in inquiry.questions:
        check_question(question)
    if inquiry.picture:
        check_picture(inquiry.picture, "--picture")


def _read(path: str, settings: Settings, workdir: Workdir, inquiry: Inquiry) -> Recording:
    """One recording, with a warning where the model has seen nothing like it; raises RecordError."""
    how = settings.signal
    recording = read_recording(path, how, how.segment_length, inquiry.sample_rate, inquiry.leads, inquiry.units)
    foreign = settings.data.synthetic_records and workdir.synthetic.resolve() not in Path(path).resolve().parents
    return with_foreign(recording) if foreign else recording


def _read_each(
    paths: list[str], settings: Settings, workdir: Workdir, inquiry: Inquiry, refused: list[str]
) -> Iterator[Recording]:
    """The recordings one by one; unusable ones are reported and added to `refused`."""
    for path in paths:
        try:
            yield _read(path, settings, workdir, inquiry)
        except RecordError as error:
            refused.append(path)
            console.print(f"unusable   {error}")
            if inquiry.format == "json":
                print(json.dumps({"path": path, "error": str(error)}), flush=True)


def _subjects(trained: Trained, named: list[Recording], later: Iterator[Recording], together: bool) -> Iterator[Subject]:
    """Those that were named, then those that are still to be read; each is shown as it was read."""
    groups = [named] if together else ([recording] for recording in chain(named, later))
    for group in groups:
        subject = Subject.of(trained, group)
        _show_subject(subject)
        yield subject


def _pairs(subjects: Iterator[Subject], inquiry: Inquiry, familiar: Familiar) -> Iterator[tuple[Subject, str]]:
    """Each subject with all questions; where they are typed, all subjects with each question in turn."""
    if inquiry.questions:
        yield from ((subject, question) for subject in subjects for question in inquiry.questions)
        return
    kept = list(subjects)
    known = "".join(f"\n  {question}" for question in familiar.questions[:_SHOWN_QUESTIONS])
    for question in read_questions(f"questions of the training, for example:{known}"):
        yield from ((subject, question) for subject in kept)


def _reply(
    trained: Trained, settings: Settings, subject: Subject, question: str, familiar: Familiar, picture: Path | None
) -> Reply:
    prompt = _encode_question(trained, subject, question)
    answers = _answer(trained, settings.eval, subject, prompt)
    best = vote(answers)
    warnings = tuple(doubts(trained, subject, question, prompt, familiar))
    drawn = _draw(trained, settings.attend, subject, question, answers[best], best, picture) if picture else []
    return Reply(question, answers, best, warnings, tuple(drawn))


def _answer(trained: Trained, sampling: EvalSettings, subject: Subject, prompt: np.ndarray) -> list[Answer]:
    """Greedy answers for all segments to a prompt's text ids int32 [n]."""
    ids = trained.ids
    parts = batch_parts(trained.mesh)
    size = parts * -(-min(len(subject.segments), sampling.batch_size) // parts)
    prompts = [(ecgs, prompt) for ecgs in subject.segments]
    answers = []
    for start in range(0, len(prompts), size):
        with jax.set_mesh(trained.mesh):
            batch, rows = prompt_batch(ids, prompts[start : start + size], size, trained.max_length)
            batch = put_whole(batch, trained.mesh)
            how = {"stop_ids": trained.form.stops, "pad_id": ids.pad, "return_log_probs": True}
            tokens, log_probs = generate(trained.model, **batch, max_new_tokens=sampling.max_new_tokens, **how)
        answers += read_answers(
            np.asarray(tokens)[rows], np.asarray(log_probs)[rows], trained.form.stops, trained.text_tokenizer
        )
    return answers


def _encode_question(trained: Trained, subject: Subject, question: str) -> np.ndarray:
    """The text ids int32 [n] of its prompt; raises ConfigError where they leave the subject's ECGs no room."""
    try:
        return subject.prompt(trained, [(question, "")])[0]
    except ExampleError as error:
        raise ConfigError(f"--question: {error}; ask a shorter one") from error


def _show_subject(subject: Subject) -> None:
    """What was read, what was noticed, and what speaks against the answers."""
    for recording in subject.recordings:
        beats = "" if math.isnan(recording.beats) else f", about {recording.beats:.0f} beats a minute"
        read = f"12 leads, {recording.rate:g} Hz, {recording.seconds:g} s{beats}"
        count = len(subject.segments)
        console.print(f"recording  {recording.name}: {read}; {count} segment{'s' * (count > 1)} of {subject.seconds:g} s")
        lines = [f"  note     {note}" for note in recording.notes] + [f"  warning  {text}" for text in recording.warnings]
        console.print("\n".join(lines), end="\n" if lines else "")


def _show(subject: Subject, reply: Reply, several: bool, typed: bool) -> None:
    """An answer; with its recording's name where there are several, without the question where it was just typed."""
    chosen, answers = reply.answers[reply.best], reply.answers
    lines = [f"about      {subject.name}"] if several else []
    lines += [*([] if typed else [f"question   {reply.question}"]), *(f"  warning  {warning}" for warning in reply.warnings)]
    probability = math.exp(chosen.log_prob)
    votes = f"{'' if reply.majority else 'no majority: '}{reply.agreeing} of {len(answers)} segments"
    lines.append(f"answer     {chosen.text or '(empty)'}   [{votes}; probability {probability:.2f} in the surest]")
    others = [i for i, answer in enumerate(answers) if answer.text != chosen.text]
    for i in others[:_LISTED]:
        span = f"{i * subject.seconds:g}-{(i + 1) * subject.seconds:g} s"
        lines.append(f"  {span:<9}{answers[i].text or '(empty)'}   [probability {math.exp(answers[i].log_prob):.2f}]")
    if len(others) > _LISTED:
        lines.append(f"  and {len(others) - _LISTED} more segments with other answers")
    lines += [f"picture    {path}" for path in reply.pictures]
    foreign = any(FOREIGN in recording.warnings for recording in subject.recordings)
    lines.append(f"           {'from a model trained on synthetic ECGs; ' if foreign else ''}{NOT_TO_USE}")
    console.print("\n".join(lines))


def _as_json(subject: Subject, reply: Reply, worth: Worth) -> dict:
    """One line of --format=json; probabilities 0..1, times in s, rates in Hz."""
    chosen = reply.answers[reply.best]
    return {
        "recordings": [
            {"name": r.name, "path": r.path, "rate_hz": r.rate, "seconds": r.seconds, "notes": r.notes}
            | {"beats_per_minute": None if math.isnan(r.beats) else round(r.beats, 1)}
            for r in subject.recordings
        ],
        "question": reply.question,
        "answer": chosen.text,
        "majority": reply.majority,
        "segments_agreeing": reply.agreeing,
        "probability_in_surest_segment": math.exp(chosen.log_prob),
        "segments": by_segment(subject, reply.answers, range(len(reply.answers))),
        "warnings": [
            *worth.warnings,
            *(f"{r.name}: {text}" for r in subject.recordings for text in r.warnings),
            *reply.warnings,
        ],
        "run": worth.sentence,
        "verdict": worth.verdict,
        "pictures": list(map(str, reply.pictures)),
        "note": NOT_TO_USE,
    }


def _picture_path(picture: str, number: int) -> Path:
    """FILE.png for the first answer, FILE_2.png for the second."""
    path = Path(picture)
    return path if number == 0 else path.with_name(f"{path.stem}_{number + 1}{path.suffix}")


def _draw(
    trained: Trained, attend: AttendSettings, subject: Subject, question: str, answer: Answer, place: int, path: Path
) -> list[Path]:
    """The attention picture of the segment `place`, whose answer is shown; one for each of several recordings in one prompt."""
    view = look(trained, subject.segments[place], ((question, ""),), np.array(answer.tokens, np.int32), attend)
    start, files = place * subject.seconds, []
    title = f"{subject.name}, {start:g}-{start + subject.seconds:g} s. {question} {answer.text or '(empty)'}"
    for number, (ecg, signal) in enumerate(zip(view.ecgs, subject.signals[place])):
        files.append(path if number == 0 else path.with_name(f"{path.stem}_ecg{number + 1}{path.suffix}"))
        how = {"seen": ecg.seen, "title": title, "about": ecg.about}
        figure = draw_attention(signal, ecg.samples["attention"], subject.rate, **how)
        save_picture(figure, files[-1])
    return files
