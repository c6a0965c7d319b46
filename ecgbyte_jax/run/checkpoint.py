"""Checkpoints through Orbax: the one file that knows its API."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from orbax.checkpoint import v1 as ocp

from ecgbyte_jax.errors import CheckpointError
from ecgbyte_jax.run import distributed

_AT_ONCE = 60  # s within which all processes find a checkpoint damaged, or one of them has a trouble of its own

_policies = ocp.training.preservation_policies
_PARTIAL = ocp.options.PyTreeOptions.Loading(partial_load=True)


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that cannot be read as it was written."""


class Checkpoints:
    """The checkpoints of one training in `folder`: the newest `keep`, and the one with the least validation loss.

    Each holds a tree of arrays, the checksum of each, and a description in plain JSON values. `keep` None only reads, and
    leaves alone what another process may be writing.
    """

    def __init__(self, folder: Path, keep: int | None = 2):
        self.folder = folder
        logging.set_verbosity(logging.FATAL)  # Orbax logs, with stack traces, what is told here in one line
        best = _policies.BestN(get_metric_fn=lambda m: -m["valid_loss"], n=1, keep_checkpoints_without_metrics=False)
        self._checkpointer = ocp.training.Checkpointer(
            folder.resolve(),
            preservation_policy=_policies.AnyPreservationPolicy([_policies.LatestN(keep), best]),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=keep is not None,
            context=ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=_PARTIAL)),
        )

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, rising."""
        return [found.step for found in self._checkpointer.checkpoints]

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, None where there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step of the checkpoint with the least validation loss, the earliest of equals; None where none was taken."""
        losses = {found.step: found.metrics["valid_loss"] for found in self._checkpointer.checkpoints if found.metrics}
        return min(losses, key=lambda step: (losses[step], step), default=None)

    def path(self, step: int) -> Path:
        """The folder of one checkpoint."""
        return self.folder / str(step)

    def save(self, step: int, state: Any, about: dict | None = None, valid_loss: float | None = None) -> None:
        """Writes `state` in the background; a checkpoint appears under its name only when it is whole.

        Raises CheckpointError where this one or the one before cannot be written, as on a full disk.
        """
        metadata = {"about": about or {}, "checksums": _checksums(state)}
        metrics = None if valid_loss is None else {"valid_loss": valid_loss}
        with _writing(self.folder):
            self._checkpointer.save_async(step, state, metrics=metrics, custom_metadata=metadata)

    def about(self, step: int) -> dict:
        """The description that was saved with a checkpoint; raises DamagedCheckpointError where it cannot be read."""
        return self._metadata(step)[1]["about"]

    def checksum(self, step: int) -> int:
        """What changes with any bit of a checkpoint's state; raises DamagedCheckpointError where it cannot be read."""
        checksums = self._metadata(step)[1]["checksums"]
        return sum((2 * number + 1) * checksums[name] for number, name in enumerate(sorted(checksums))) % 2**32

    def load(self, step: int, like: Any) -> Any:
        """The state of `step`, with the structure, types and shardings of `like` (arrays or jax.ShapeDtypeStruct).

        A dictionary with some of the state's fields reads these alone. Raises CheckpointError where it does not fit,
        DamagedCheckpointError where it is not what was written.
        """
        found, metadata = self._metadata(step)
        fields = {name.split("/")[0] for name in _shapes(like)}
        stored = {name: shape for name, shape in _shapes(found).items() if name.split("/")[0] in fields}
        self._check_shapes(step, stored, _shapes(like))
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            state = self._checkpointer.load(step, abstract)
        except jax.errors.JaxRuntimeError:  # no memory, or another process has ended: the checkpoint may be whole
            raise
        except Exception as error:  # Orbax lets pass whatever its readers raise; nothing goes on here
            raise self._damaged(step, str(error).splitlines()[0][:200]) from error
        other = [name for name, checksum in _checksums(state).items() if metadata["checksums"].get(name) != checksum]
        if other:
            more = f" and {len(other) - 1} more" if len(other) > 1 else ""
            raise self._damaged(step, f"the checksum of {other[0]}{more} is another one")
        return state

    def set_aside(self, step: int, why: str) -> Path:
        """Moves a checkpoint that is damaged, see `why`, out of the way, to be looked at; nothing is deleted.

        Raises CheckpointError where not all of several processes come here: others can read it.
        """
        target = next(path for n in count(1) if not (path := self.folder / f"damaged-{step}-{n}").exists())
        if not distributed.all_come("before a checkpoint is set aside", _AT_ONCE):
            raise CheckpointError(
                f"{why}; other processes can read it, so it stays: the same command tries again; with the folder moved away it "
                "goes on from the one before"
            )
        if distributed.leads():
            os.rename(self.path(step), target)
        distributed.wait_for_all("a checkpoint is set aside")
        self._checkpointer.reload()
        return target

    def wait(self) -> None:
        """Returns when what is being written is whole; raises CheckpointError where it cannot be."""
        with _writing(self.folder):
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits for what is being written."""
        with _writing(self.folder):
            self._checkpointer.close()

    def _metadata(self, step: int) -> tuple[Any, dict]:
        """(the tree of what was saved, what stands beside it)."""
        try:
            found = self._checkpointer.metadata(step)
        except Exception as error:  # as above
            raise self._damaged(step, str(error).splitlines()[0][:200]) from error
        if not isinstance(found.custom_metadata, dict) or set(found.custom_metadata) != {"about", "checksums"}:
            raise self._damaged(step, "its description cannot be read")
        return found.metadata, found.custom_metadata

    def _damaged(self, step: int, why: str) -> DamagedCheckpointError:
        return DamagedCheckpointError(f"{self.path(step)}: checkpoint {step} is damaged: {why}")

    def _check_shapes(self, step: int, stored: dict[str, tuple], wanted: dict[str, tuple]) -> None:
        """Orbax tells of one array, in a stack trace; this tells of all that differ, before anything is read."""
        different = [
            f"{name} is {stored.get(name, 'missing')}, {wanted.get(name, 'nothing')} wanted"
            for name in sorted(stored | wanted)
            if stored.get(name) != wanted.get(name)
        ]
        if different:
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise CheckpointError(
                f"{self.folder}: checkpoint {step} cannot be restored into this model: {'; '.join(different[:3])}{more}"
            )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What a disk does not take, in one line; Orbax lets pass whatever its writers raise."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # nothing of the disk's
        raise
    except Exception as error:
        why = str(error).splitlines()[0][:300]
        raise CheckpointError(
            f"{folder}: a checkpoint cannot be written: {why}; the same command goes on from the last whole one"
        ) from error


def _checksums(tree: Any) -> dict[str, int]:
    """Of every array by its path, what changes with any of its bits; the same on every mesh."""
    # One at a time, see `sharding.settle`.
    return {name: int(_sum_bits(leaf)) for name, leaf in _by_path(tree).items()}


@jax.jit
def _sum_bits(leaf: jax.Array) -> jax.Array:
    """An array's bits added up as unsigned integers, uint32 []; compiled a shape, not a model."""
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    return jnp.sum(jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32), dtype=jnp.uint32)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every array by its path."""
    return {name: tuple(leaf.shape) for name, leaf in _by_path(tree).items()}


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
