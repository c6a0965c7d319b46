"""Batches from token shards, through Grain.

Axes: B rows of a batch, T places of a row.
"""

from pathlib import Path

import grain
import numpy as np

from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.prompt import PromptIds, pad_left, render
from ecgbyte_jax.inputs.shards import Manifest, Sequence, read_ecg


def open_split(folder: Path, manifest: Manifest, split: str) -> grain.MapDataset:
    """Every sequence of a split, in the order of the files; raises ShardsError where there is none."""
    files = manifest.splits[split].files
    if not files:
        counts = {name: summary.sequences for name, summary in manifest.splits.items()}
        raise ShardsError(f"split {split!r} of '{folder}' is empty; the splits hold {counts} sequences")
    try:
        source = grain.sources.ArrayRecordDataSource([str(folder / file) for file in files])
        ecgs = grain.sources.ArrayRecordDataSource([str(folder / file) for file in manifest.ecg])
    except RuntimeError as error:
        raise ShardsError(f"{folder}: a file of split {split!r} is damaged ({error}); run --stage=prepare again") from error
    return grain.MapDataset.source(source).map(lambda data: Sequence.from_bytes(data, lambda place: read_ecg(ecgs[place])))


def training_batches(
    sequences: grain.MapDataset,
    ids: PromptIds,
    max_length: int,
    batch_size: int,
    epochs: float,
    seed: int,
    host: int = 0,
    hosts: int = 1,
) -> grain.MapDataset:
    """The batches of a whole training, this host's share of each: item n belongs to step n, whatever came before.

    Each item: input_ids, positions int32 [B / hosts, T], attention_mask, loss_mask bool. Every epoch is shuffled anew
    from the seed. Raises ShardsError where the epochs do not fill one batch.
    """
    rows = int(len(sequences) * epochs)
    if rows < batch_size or batch_size % hosts:
        raise ShardsError(
            f"{rows} sequences in {epochs} epochs and {hosts} hosts found for train.batch_size {batch_size}: "
            "at least one batch, and a multiple of the hosts, wanted"
        )
    shuffled = sequences.seed(seed).shuffle().repeat(-(-rows // len(sequences)))[:rows]

    def to_row(sequence: Sequence) -> dict[str, np.ndarray]:
        rendered = render(ids, sequence.ecgs, sequence.question_ids, sequence.answer_ids, max_length)
        return pad_left(*rendered, max_length, ids.pad)

    return shuffled[host::hosts].map(to_row).batch(batch_size // hosts, drop_remainder=True)


def prompt_batch(
    ids: PromptIds, prompts: list[tuple[tuple[np.ndarray, ...], np.ndarray]], rows: int, max_length: int
) -> dict[str, np.ndarray]:
    """Prompts (ECGs, question ids) without answers as one batch of `rows` rows; the last prompt fills up missing rows."""
    filled = prompts + prompts[-1:] * (rows - len(prompts))
    rendered = [pad_left(*render(ids, ecgs, question, None, max_length), max_length, ids.pad) for ecgs, question in filled]
    return {name: np.stack([row[name] for row in rendered]) for name in ("input_ids", "attention_mask")}
