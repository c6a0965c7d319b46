"""Batches on their way to the devices: read ahead by threads, and the next one put there while a step is at work."""

import time

import grain
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ecgbyte_jax.inputs.batches import open_split, training_batches
from ecgbyte_jax.inputs.plan import Layout, Plan
from ecgbyte_jax.inputs.shards import read_lengths
from ecgbyte_jax.run.prepare import Prepared
from ecgbyte_jax.run.sharding import put_batch, rows_here


def plan_batches(
    config: ConfigDict, prepared: Prepared, split: str, epochs: float, mesh: Mesh | None = None
) -> tuple[Plan, grain.MapDataset]:
    """The plan of `epochs` shuffled epochs of a split, and its batches; item n belongs to step n.

    On a mesh a batch holds the rows that this process' devices need, see `sharding.rows_here`.
    """
    layout = Layout(config.prompt.max_length, config.data.packing, () if config.data.packing else config.data.length_buckets)
    lengths = read_lengths(prepared.shards, prepared.manifest, split)
    plan = Plan(lengths, layout, config.train.batch_size, epochs, config.seed)
    sequences = open_split(prepared.shards, prepared.manifest, split)
    rows = None if mesh is None else rows_here(mesh, config.train.batch_size)
    return plan, training_batches(sequences, plan, prepared.ids, layout.max_length, rows)


class Feed:
    """The batches of the steps from `start` on; `waited` is the time in s for which the last one was not there yet."""

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
        """Puts the next batch onto the devices, where there is one; to be called when a step is under way."""
        before = time.monotonic()
        rows = next(self._iterator, None)
        self.waited = time.monotonic() - before
        self._next = None if rows is None else put_batch(rows, self._mesh)
