"""Tasks that write one shard each; a task whose file and summary exist already does nothing.

A run that was killed thus resumes where it stopped.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from ecgbyte_jax.files import file_digest, write_whole
from ecgbyte_jax.run.console import progress
from ecgbyte_jax.run.stage import json_digest

Item = TypeVar("Item")


@dataclass(frozen=True)
class Target:
    """Where a task writes, and the tokenizer that it uses, with its digest."""

    shard: Path
    summary: Path
    tokenizer: Path
    tokenizer_sha256: str


class ShardTask(Protocol):
    """A picklable value that determines the content of a shard."""

    @property
    def target(self) -> Target:
        """Where the task writes."""
        ...

    def identity(self) -> list:
        """Returns JSON values that determine the shard's content, except the tokenizer."""
        ...


def collect(summaries: Iterator[tuple[int, dict]], title: str, sizes: list[int]) -> list[dict]:
    """Collects the summaries of all tasks in task order, with lengths as int32; `sizes` are the tasks' progress.

    Tasks are created when sent and not kept, so memory does not grow with their number.
    """
    by_number: dict[int, dict] = {}
    with progress(title, sum(sizes)) as report:
        for number, summary in summaries:
            by_number[number] = summary | {"lengths": np.array(summary["lengths"], np.int32)}
            report(sum(sizes[done] for done in by_number))
    return [by_number[number] for number in range(len(sizes))]


def make_targets(shards: Path, summaries: Path, tokenizer: Path, name: str, count: int) -> list[Target]:
    """Names the targets of `count` tasks: NAME-00000, NAME-00001, ..."""
    digest, files = file_digest(tokenizer), [f"{name}-{number:05d}" for number in range(count)]
    return [Target(shards / f"{file}.array_record", summaries / f"{file}.json", tokenizer, digest) for file in files]


def in_chunks(items: list[Item], sizes: list[int], limit: int) -> Iterator[list[Item]]:
    """Yields consecutive items of total size at most `limit`; a larger item is its own chunk."""
    chunk: list[Item] = []
    total = 0
    for item, size in zip(items, sizes):
        if chunk and total + size > limit:
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += size
    if chunk:
        yield chunk


def run_once(task: ShardTask, write: Callable[..., dict]) -> dict:
    """Returns the summary of an earlier run of the same task if its file is complete; otherwise runs `write`."""
    target = task.target
    digest = json_digest([target.tokenizer_sha256, task.identity()])
    summary = _read_summary(target)
    if summary is None or summary["task"] != digest:
        summary = write(task) | {"task": digest}
        write_whole(target.summary, [json.dumps(summary).encode()])
    return summary


def _read_summary(target: Target) -> dict | None:
    """None if the summary or its shard is incomplete."""
    try:
        summary = json.loads(target.summary.read_text(encoding="utf-8"))
        empty = "split" in summary and not summary["split"]["files"]
        complete = empty or target.shard.stat().st_size == summary["written"]["bytes"]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return summary if complete else None
