"""Batches from token shards, through Grain.

Axes: B rows of a batch, T places of a row, A answer tokens of a row at most.
"""

from pathlib import Path

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
    sequences: grain.MapDataset, plan: Plan, ids: PromptIds, max_length: int, host: int = 0, hosts: int = 1
) -> grain.MapDataset:
    """The batches of a whole training, this host's share of each: item n belongs to step n, whatever came before.

    Each item: input_ids, positions, segments int32 [B / hosts, T], answer_places, targets int32 [B / hosts, A], answer_mask
    bool [B / hosts, A]; see `prompt.lay_out`.
    """

    def to_row(numbers: np.ndarray, length: int) -> dict[str, np.ndarray]:
        found = (sequences[int(number)] for number in numbers)
        rendered = [render(ids, s.ecgs, s.question_ids, s.answer_ids, max_length) for s in found]
        return lay_out(rendered, length, plan.answer_tokens, ids.pad)

    def to_batch(number: int) -> dict[str, np.ndarray]:
        step = plan[number]
        rows = [to_row(row, step.length) for row in step.rows[host::hosts]]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    return grain.MapDataset.range(len(plan)).map(to_batch)


def prompt_batch(
    ids: PromptIds, prompts: list[tuple[tuple[np.ndarray, ...], np.ndarray]], rows: int, max_length: int
) -> dict[str, np.ndarray]:
    """Prompts (ECGs, question ids) without answers as one batch of `rows` rows; the last prompt fills up missing rows."""
    filled = prompts + prompts[-1:] * (rows - len(prompts))
    rendered = [render(ids, ecgs, question, None, max_length) for ecgs, question in filled]
    laid = [lay_out([one], max_length, 0, ids.pad) for one in rendered]
    return {
        "input_ids": np.stack([row["input_ids"] for row in laid]),
        "attention_mask": np.stack([row["segments"] != 0 for row in laid]),
    }
