"""Batches from token shards, through Grain.

Axes: B rows of a batch, T places of a row, A answer tokens of a row at most.
"""

from pathlib import Path
from typing import Any

import grain
import numpy as np

from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.plan import Plan
from ecgbyte_jax.inputs.prompt import PromptIds, lay_out, render
from ecgbyte_jax.inputs.shards import Manifest, Sequence, read_ecg


def open_split(folder: Path, manifest: Manifest, split: str) -> grain.MapDataset:
    """Every sequence of a split, in the order of the files; raises ShardsError where there is none."""
    files = manifest.splits[split].files
    if not files:
        counts = {name: summary.sequences for name, summary in manifest.splits.items()}
        raise ShardsError(f"split {split!r} of '{folder}' is empty; the splits hold {counts} sequences")
    try:
        records = grain.sources.ArrayRecordDataSource([str(folder / file) for file in files])
        ecgs = grain.sources.ArrayRecordDataSource([str(folder / file) for file in manifest.ecg])
    except RuntimeError as error:
        raise _damaged(folder, split, error) from error

    def read(number: int) -> Sequence:
        try:
            return Sequence.from_bytes(records[number], lambda place: read_ecg(ecgs[place]))
        except (RuntimeError, ValueError) as error:
            raise _damaged(folder, split, error) from error

    return grain.MapDataset.range(len(records)).map(read)


def _damaged(folder: Path, split: str, error: Exception) -> ShardsError:
    why = str(error).splitlines()[0]
    return ShardsError(f"{folder}: a file of split {split!r} or of its ECGs is damaged ({why}); run --stage=prepare again")


def training_batches(
    sequences: grain.MapDataset, plan: Plan, ids: PromptIds, max_length: int, rows: np.ndarray | None = None
) -> grain.MapDataset:
    """The batches of a whole training, or some of their rows: item n belongs to step n, whatever came before.

    `rows`: the numbers int [b] of those of the B rows that are made; None: all. Each item: input_ids, positions, segments
    int32 [b, T], answer_places, targets int32 [b, A], answer_mask bool [b, A]; see `prompt.lay_out`.
    """

    def to_row(numbers: np.ndarray, length: int) -> dict[str, np.ndarray]:
        found = (sequences[int(number)] for number in numbers)
        rendered = [render(ids, s.ecgs, s.question_ids, s.answer_ids, max_length) for s in found]
        return lay_out(rendered, length, plan.answer_tokens, ids.pad)

    def to_batch(number: int) -> dict[str, np.ndarray]:
        step = plan[number]
        made = [to_row(step.rows[i], step.length) for i in (range(len(step.rows)) if rows is None else rows)]
        return {name: np.stack([row[name] for row in made]) for name in made[0]}

    return grain.MapDataset.range(len(plan)).map(to_batch)


def prompt_batch(
    ids: PromptIds, prompts: list[tuple[tuple[np.ndarray, ...], np.ndarray]], rows: int, max_length: int, each: int = 1
) -> tuple[dict[str, Any], list[int]]:
    """Prompts (ECGs, question ids) without answers as one batch of B = `rows` rows, and the row of each prompt.

    shared [P, T'] twice (ids, and which of them are there): what `each` = B / P rows begin with, whose ECGs are the same;
    input_ids, attention_mask [B, T]: the rest, a token or more. All are padded on the left; rows without a prompt repeat one.
    """
    by_ecgs: dict[tuple[bytes, ...], list[int]] = {}
    for number, (ecgs, _) in enumerate(prompts):
        by_ecgs.setdefault(key_of(ecgs), []).append(number)
    slots = [some[i : i + each] for some in by_ecgs.values() for i in range(0, len(some), each)]
    slots += slots[-1:] * (rows // each - len(slots))
    filled = [number for some in slots for number in some + some[-1:] * (each - len(some))]
    whole = [render(ids, ecgs, question, None, max_length)[0] for ecgs, question in prompts]
    common = [_common([whole[number] for number in some]) for some in slots]
    starts = [whole[some[0]][:length] for some, length in zip(slots, common)]
    ends = [whole[number][common[row // each] :] for row, number in enumerate(filled)]
    input_ids, mask = _pad_left(ends, max_length, ids.pad)
    batch = {"input_ids": input_ids, "attention_mask": mask, "shared": _pad_left(starts, max_length, ids.pad)}
    return batch, [filled.index(number) for number in range(len(prompts))]


def key_of(ecgs: tuple[np.ndarray, ...]) -> tuple[bytes, ...]:
    """The same for the same ECGs (compact ids), to group by."""
    return tuple(ecg.tobytes() for ecg in ecgs)


def _common(rows: list[np.ndarray]) -> int:
    """How many tokens all the rows begin with, but for the last one of each."""
    shortest = min(map(len, rows)) - 1
    same = np.logical_and.reduce([row[:shortest] == rows[0][:shortest] for row in rows])
    return shortest if same.all() else int(same.argmin())


def _pad_left(rows: list[np.ndarray], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [B, T], which of them are there bool [B, T])."""
    there = np.arange(length) >= length - np.array([[len(row)] for row in rows])
    padded = np.full(there.shape, pad, np.int32)
    padded[there] = np.concatenate(rows)
    return padded, there
