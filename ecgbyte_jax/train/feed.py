"""Batches on their way to the devices: threads read ahead, and the next batch is transferred while a step runs."""

import time

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from ecgbyte_jax.inputs.batches import outlines_of, training_batches
from ecgbyte_jax.inputs.controls import open_shown, shown_lengths
from ecgbyte_jax.inputs.plan import Layout, Mixture, Plan
from ecgbyte_jax.inputs.prepared import Prepared
from ecgbyte_jax.inputs.shards import read_parts
from ecgbyte_jax.model.sharding import put_batch, rows_here
from ecgbyte_jax.settings import Settings


def plan_batches(
    settings: Settings, prepared: Prepared, split: str, epochs: float, mesh: Mesh | None = None, part: str = ""
) -> tuple[Plan, grain.MapDataset]:
    """The plan of `epochs` shuffled epochs of a split, which shows `data.ecg`, and its batches; item n belongs to step n.

    The training split of a mixture is drawn from by its weights; part: one corpus of it, instead, each sequence once an epoch.
    On a mesh a batch holds the rows that this process' devices need, see `sharding.rows_here`.
    """
    data, batch_size = settings.data, settings.train.batch_size
    layout = Layout(settings.prompt.max_length, data.packing, () if data.packing else data.length_buckets)
    sequences = open_shown(prepared, split, data.ecg, settings.signal.segment_length, settings.seed)
    lengths = shown_lengths(prepared, split, data.ecg, sequences, layout.max_length)
    mixture, shares = None, data.shares
    if shares and (part or split == "train"):
        drawn = [float(name == part) if part else share for name, share in shares.items()]
        mixture = Mixture(read_parts(prepared.shards, split), drawn, settings.seed)
    plan = Plan(lengths, layout, batch_size, epochs, settings.seed, mixture)
    rows, ecgs = None if mesh is None else rows_here(mesh, batch_size), 0
    if prepared.ids.vectors:
        outlines = outlines_of(prepared.shards, prepared.manifest, split)
        ecgs = plan.most(np.array([len(outline.ecgs) for outline in outlines]))
    return plan, training_batches(sequences, plan, prepared.ids, layout.max_length, rows, ecgs)


class Feed:
    """The batches of the steps after `start`; `waited` is the time in s for which the last one was not ready."""

    def __init__(self, batches: grain.MapDataset, start: int, mesh: Mesh):
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        self._iterator = iter(batches[start:].to_iter_dataset(ahead))
        self._mesh, self._next = mesh, None
        self.waited = 0.0

    def take(self) -> dict[str, jax.Array]:
        """The next step's batch as global arrays."""
        if self._next is None:
            self.prefetch()
        batch, self._next = self._next, None
        return batch

    def prefetch(self) -> None:
        """Puts the next batch, where there is one, onto the devices; to be called while a step runs."""
        before = time.monotonic()
        rows = next(self._iterator, None)
        self.waited = time.monotonic() - before
        self._next = None if rows is None else put_batch(rows, self._mesh)
