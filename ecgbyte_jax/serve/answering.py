"""A question about recordings as rows of the engine, and their answers as the API tells them.

Axes: n tokens of a prompt, A of an answer.
"""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ecgbyte_jax.asking.reply import Reply, by_segment, doubts, vote
from ecgbyte_jax.asking.subject import Subject
from ecgbyte_jax.asking.worth import Worth
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.errors import ExampleError
from ecgbyte_jax.evaluate.answers import read_answers
from ecgbyte_jax.evaluate.familiar import Familiar
from ecgbyte_jax.evaluate.generations import Answer
from ecgbyte_jax.explain.views import split_words
from ecgbyte_jax.inputs.prompt import render_prompt
from ecgbyte_jax.inputs.recording import Recording
from ecgbyte_jax.serve.engine import BusyError, Engine, Job, Row
from ecgbyte_jax.serve.errors import ApiError
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.restore import Trained


@dataclass(frozen=True, eq=False)
class Asked:
    """A question with its prompts.

    segments: the numbers of those that are asked about; rows: one for each; words of warning in `warnings`.
    """

    subject: Subject
    question: str
    segments: tuple[int, ...]
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Answerer:
    """What answers: a model with its engine, and what is known of its training; commonest: question -> answer there."""

    settings: Settings
    trained: Trained
    engine: Engine
    familiar: Familiar
    worth: Worth
    commonest: dict[str, str]

    def ask(self, subject: Subject, turns: Sequence[tuple[str, str]], segment: int | None, most: int) -> Asked:
        """The prompts for the last turn's question, about one segment or all; raises ApiError where they are too long."""
        warnings, question = [], turns[-1][0]
        if len(turns) > 1 and not self.familiar.conversations:
            turns = turns[-1:]
            warnings.append("the training had single questions, so the earlier messages are left out")
        try:
            text, left_out = subject.prompt(self.trained, turns)
        except ExampleError as error:
            raise ApiError(400, f"{error}; ask a shorter question", "messages", "context_length_exceeded") from error
        if left_out:
            warnings.append(f"the oldest {left_out} questions of the conversation have no room and are left out")
        warnings += doubts(self.trained, subject, question, text, self.familiar)
        if segment is not None and not 0 <= segment < len(subject.segments):
            raise ApiError(400, f"segment {segment} found, 0 to {len(subject.segments) - 1} expected", "ecg.segment")
        segments = tuple(range(len(subject.segments))) if segment is None else (segment,)
        rows = tuple(self._row(subject.segments[number], text, most) for number in segments)
        return Asked(subject, question, segments, rows, tuple(warnings))

    def _row(self, ecgs: tuple[np.ndarray, ...], text: np.ndarray, most: int) -> Row:
        ids = self.trained.ids
        prompt = render_prompt(ids, text, ecgs, self.trained.max_length)
        ecg = int(np.flatnonzero(prompt == ids.sig_end)[-1]) + 1
        return Row(prompt, ecg, np.stack(ecgs)[None].astype(np.float32) if ids.vectors else None, most)

    def warm(self) -> None:
        """Answers a question about ECGs of zeros, which compiles what is not yet."""
        length, rate = self.settings.signal.segment_length, self.settings.signal.target_rate or 500.0
        for count in sorted(self.familiar.ecgs):
            blank = Recording("", "", rate, length / rate, math.nan, (), rate, np.zeros((1, len(LEADS), length)))
            asked = self.ask(Subject.of(self.trained, [blank] * count), [(self.familiar.questions[0], "")], 0, 1)
            ended = threading.Event()
            job = Job(asked.rows, ended.set)
            self.engine.submit(job)
            ended.wait()
            if job.failure:
                raise job.failure

    async def run(self, asked: Asked) -> AsyncIterator[None]:
        """Answers: goes on after every step that changed a row, until all have ended; if left early, slots get free."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the event loop has ended, so nobody waits any more
                loop.call_soon_threadsafe(changed.set)

        job = Job(asked.rows, tell)
        try:
            self.engine.submit(job)
        except BusyError:
            raise ApiError(429, "too many questions wait for an answer; ask again later", None, "busy", retry_after=1) from None
        try:
            while not all(row.ended for row in asked.rows):
                await changed.wait()
                changed.clear()
                if job.failure:
                    raise job.failure
                yield
        finally:
            self.engine.cancel(job)

    def reply(self, asked: Asked) -> Reply:
        """The answers of its segments once all have ended, and the elected one."""
        answers = [self.read(row) for row in asked.rows]
        return Reply(asked.question, answers, vote(answers), asked.warnings)

    def read(self, row: Row) -> Answer:
        """A row's answer so far."""
        tokens, log_probs = np.array([row.tokens], np.int32), np.array([row.log_probs], np.float32)
        return read_answers(tokens, log_probs, self.trained.form.stops, self.trained.text_tokenizer)[0]

    def shown(self, tokens: Sequence[int]) -> str:
        """The text of an answer's first tokens that no later one changes: without spaces and half characters at its end."""
        return self.text(tokens).lstrip().rstrip("\ufffd").rstrip()

    def log_probs(self, row: Row) -> list[dict[str, Any]]:
        """The tokens of a row so far, without the one that ends it, as OpenAI tells them."""
        count, entries, before = len(row.tokens) - row.stopped, [], ""
        for number in range(count):
            text = self.text(row.tokens[: number + 1])
            piece, before = text[len(before) :], text
            about = {"token": piece, "logprob": row.log_probs[number], "bytes": list(piece.encode()), "top_logprobs": []}
            entries.append(about)
        return entries

    def about(self, asked: Asked, reply: Reply) -> dict[str, Any]:
        """What the extension `ecg` of a response tells."""
        chosen, subject = reply.answers[reply.best], asked.subject
        segments = by_segment(subject, reply.answers, asked.segments)
        return {
            "segment": asked.segments[reply.best],
            "answer": chosen.text,
            "probability": math.exp(chosen.log_prob),
            "majority": reply.majority,
            "segments_agreeing": reply.agreeing,
            "segments": segments,
            "warnings": [
                *self.worth.warnings,
                *(f"{each.name}: {text}" for each in subject.recordings for text in each.warnings),
                *reply.warnings,
            ],
            "words": self.words(chosen.tokens),
            "tokens": [
                {name: entry[name] for name in ("token", "logprob")} for entry in self.log_probs(asked.rows[reply.best])
            ],
        }

    def words(self, tokens: Sequence[int]) -> list[dict[str, Any]]:
        """The words of an answer with the numbers of their first token and of the token after their last."""
        count = next((number for number, token in enumerate(tokens) if token in self.trained.form.stops), len(tokens))
        ends = [0, *(len(self.text(tokens[: number + 1])) for number in range(count))]
        words, word_of = split_words(self.text(tokens[:count]), pairwise(ends))
        places = [np.flatnonzero(word_of == number) for number in range(len(words))]
        return [
            {"text": word, "start_token": int(at[0]), "end_token": int(at[-1]) + 1}
            for word, at in zip(words, places)
            if len(at)
        ]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, with the spaces around it."""
        return self.trained.text_tokenizer.decode(list(tokens), skip_special_tokens=True)
