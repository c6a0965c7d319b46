"""Batches from token shards, through Grain.

Axes: B rows per batch, T places per row, A answer tokens per row at most.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import grain
import numpy as np

from ecgbyte_jax.errors import ExampleError, ShardsError
from ecgbyte_jax.inputs.plan import Plan
from ecgbyte_jax.inputs.prompt import PromptIds, lay_out, render, render_prompt
from ecgbyte_jax.inputs.shards import Manifest, Sequence, read_ecg


def open_split(
    folder: Path, manifest: Manifest, split: str, read_segment: Callable[[int], np.ndarray] | None = None
) -> grain.MapDataset:
    """Opens the sequences of a split, in file order; raises ShardsError if there is none or a file is damaged.

    read_segment: reads their ECGs by number, by default as `open_ecgs` does.
    """
    return _open(folder, manifest, split, read_segment or open_ecgs(folder, manifest, split))


def open_outlines(folder: Path, manifest: Manifest, split: str) -> grain.MapDataset:
    """As `open_split`, but a sequence has the numbers of its ECGs, which `open_ecgs` reads, in place of their tokens."""
    return _open(folder, manifest, split, np.asarray)


def outlines_of(folder: Path, manifest: Manifest, split: str) -> list[Sequence]:
    """All sequences of a split as `open_outlines` has them; none of an empty one."""
    outlines = open_outlines(folder, manifest, split) if manifest.splits[split].files else []
    return [outlines[number] for number in range(len(outlines))]


def open_ecgs(folder: Path, manifest: Manifest, split: str) -> Callable[[int], np.ndarray]:
    """Reads an ECG by its number, compact ids int32 [n]; raises ShardsError if a file is damaged."""
    try:
        ecgs = grain.sources.ArrayRecordDataSource([str(folder / file) for file in manifest.ecg])
    except RuntimeError as error:
        raise _damaged(folder, split, error) from error
    return lambda place: read_ecg(ecgs[place])


def _open(folder: Path, manifest: Manifest, split: str, read_segment: Callable[[int], np.ndarray]) -> grain.MapDataset:
    files = manifest.splits[split].files
    if not files:
        counts = {name: summary.sequences for name, summary in manifest.splits.items()}
        raise ShardsError(f"split {split!r} of '{folder}' is empty; the splits hold {counts} sequences")
    try:
        records = grain.sources.ArrayRecordDataSource([str(folder / file) for file in files])
    except RuntimeError as error:
        raise _damaged(folder, split, error) from error

    def read(number: int) -> Sequence:
        try:
            return Sequence.from_bytes(records[number], read_segment)
        except (RuntimeError, ValueError) as error:
            raise _damaged(folder, split, error) from error

    return grain.MapDataset.range(len(records)).map(read)


def _damaged(folder: Path, split: str, error: Exception) -> ShardsError:
    cause = str(error).splitlines()[0]
    return ShardsError(f"{folder}: a file of split {split!r} or of its ECGs is damaged ({cause}); run --stage=prepare again")


def training_batches(
    sequences: grain.MapDataset, plan: Plan, ids: PromptIds, max_length: int, rows: np.ndarray | None = None, ecgs: int = 0
) -> grain.MapDataset:
    """The batches of an entire training, or a subset of their rows: item n is step n's, regardless of history.

    rows: the numbers int [b] of the rows to make; None: all B. Each item: input_ids, positions, segment_ids int32 [b, T],
    answer_places, targets int32 [b, A], answer_mask bool [b, A]; see `prompt.lay_out`. Where a model reads vectors, also
    signals float32 [b, S, 12, L] in mV: the ECGs in their order in a row, S = `ecgs` at most.
    """

    def to_row(numbers: np.ndarray, length: int) -> dict[str, np.ndarray]:
        members = [sequences[int(number)] for number in numbers]
        rendered = [render(ids, sequence.text, sequence.ecgs, max_length) for sequence in members]
        row = lay_out(rendered, length, plan.answer_tokens, ids.pad)
        return row | ({"signals": _stack_signals([ecg for m in members for ecg in m.ecgs], ecgs)} if ids.vectors else {})

    def to_batch(number: int) -> dict[str, np.ndarray]:
        step = plan[number]
        laid_out = [to_row(step.rows[i], step.length) for i in (range(len(step.rows)) if rows is None else rows)]
        return {name: np.stack([row[name] for row in laid_out]) for name in laid_out[0]}

    return grain.MapDataset.range(len(plan)).map(to_batch)


def prompt_batch(
    ids: PromptIds, prompts: list[tuple[tuple[np.ndarray, ...], np.ndarray]], rows: int, max_length: int, each: int = 1
) -> tuple[dict[str, Any], list[int]]:
    """Batches prompts (ECGs, ids of the text around them) in B = `rows` rows; returns the batch and each prompt's row.

    shared: (ids int32, mask bool) [P, T'] of prefixes, each common to `each` = B / P consecutive rows with the same ECGs;
    input_ids int32, attention_mask bool [B, T]: the remainder, at least one token. Padded on the left; unused rows repeat a
    prompt. Where a model reads vectors, also signals float32 [P, S, 12, L]: the ECGs of each prefix.
    """
    by_ecgs: dict[tuple[bytes, ...], list[int]] = {}
    for number, (ecgs, _) in enumerate(prompts):
        by_ecgs.setdefault(key_of(ecgs), []).append(number)
    slots = [numbers[i : i + each] for numbers in by_ecgs.values() for i in range(0, len(numbers), each)]
    slots += slots[-1:] * (rows // each - len(slots))
    filled = [number for slot in slots for number in slot + slot[-1:] * (each - len(slot))]
    rendered = [render_prompt(ids, text, ecgs, max_length) for ecgs, text in prompts]
    common = [_common_length([rendered[number] for number in slot]) for slot in slots]
    starts = [rendered[slot[0]][:length] for slot, length in zip(slots, common)]
    ends = [rendered[number][common[row // each] :] for row, number in enumerate(filled)]
    input_ids, mask = _pad_left(ends, max_length, ids.pad)
    batch = {"input_ids": input_ids, "attention_mask": mask, "shared": _pad_left(starts, max_length, ids.pad)}
    if ids.vectors:
        if any(ids.place in end for end in ends):
            raise ExampleError("prompt.format: prompts that differ before their ECG found, the same text before it expected")
        most = max(len(ecgs) for ecgs, _ in prompts)
        batch["signals"] = np.stack([_stack_signals(prompts[slot[0]][0], most) for slot in slots])
    return batch, [filled.index(number) for number in range(len(prompts))]


def key_of(ecgs: tuple[np.ndarray, ...]) -> tuple[bytes, ...]:
    """A key that groups prompts by their ECGs (compact ids)."""
    return tuple(ecg.tobytes() for ecg in ecgs)


def _stack_signals(ecgs: SequenceOf[np.ndarray], count: int) -> np.ndarray:
    """The ECGs float32 [12, L] that a row shows, then zeros: float32 [count, 12, L]; of no length where it shows none."""
    shown = np.stack([ecg for ecg in ecgs])
    return np.pad(shown, ((0, count - len(shown)), (0, 0), (0, 0)))


def _common_length(rows: list[np.ndarray]) -> int:
    """The length of the rows' common prefix, excluding the last token of each."""
    shortest = min(map(len, rows)) - 1
    same = np.logical_and.reduce([row[:shortest] == rows[0][:shortest] for row in rows])
    return shortest if same.all() else int(same.argmin())


def _pad_left(rows: list[np.ndarray], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int32 [B, T], mask bool [B, T], False on padding)."""
    mask = np.arange(length) >= length - np.array([[len(row)] for row in rows])
    padded = np.full(mask.shape, pad, np.int32)
    padded[mask] = np.concatenate(rows)
    return padded, mask
