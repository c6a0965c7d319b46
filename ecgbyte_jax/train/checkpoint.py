"""Checkpoints through Orbax: the one file that knows its API."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from orbax.checkpoint import v1 as ocp

from ecgbyte_jax.errors import CheckpointError
from ecgbyte_jax.run import processes

_AT_ONCE = 60  # s within which all processes find a checkpoint damaged; else the fault is with one of them
_policies = ocp.training.preservation_policies
_PARTIAL = ocp.options.PyTreeOptions.Loading(partial_load=True)


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that cannot be read as it was written."""


class Checkpoints:
    """The checkpoints of one training in `folder`: the newest `keep`, and the one with the least validation loss.

    Each holds a tree of arrays, the checksum of each, and a description in plain JSON values. `keep` None only reads, and
    leaves what another process may be writing alone.
    """

    def __init__(self, folder: Path, keep: int | None = 2):
        self.folder = folder
        logging.set_verbosity(logging.FATAL)  # Orbax logs, with stack traces, what is reported here in one line
        best = _policies.BestN(get_metric_fn=lambda m: -m["valid_loss"], n=1, keep_checkpoints_without_metrics=False)
        try:
            self._checkpointer = ocp.training.Checkpointer(
                folder.resolve(),
                preservation_policy=_policies.AnyPreservationPolicy([_policies.LatestN(keep), best]),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                cleanup_tmp_directories=keep is not None,
                context=ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=_PARTIAL)),
            )
        except ValueError as error:  # JSON or text that cannot be read
            raise CheckpointError(
                f"{folder}: the metrics or description of a checkpoint are damaged ({error}); move the damaged one out of this "
                "folder, and the same command goes on"
            ) from error

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, ascending."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, None where there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step of the checkpoint with the least validation loss, the earliest of equals; None where there is none."""
        losses = {saved.step: saved.metrics["valid_loss"] for saved in self._checkpointer.checkpoints if saved.metrics}
        return min(losses, key=lambda step: (losses[step], step), default=None)

    def path(self, step: int) -> Path:
        """The folder of one checkpoint."""
        return self.folder / str(step)

    def save(self, step: int, state: Any, about: dict | None = None, valid_loss: float | None = None) -> None:
        """Writes `state` in the background; a checkpoint gets its name only when it is whole.

        Raises CheckpointError where this one or the one before cannot be written, as on a full disk.
        """
        metadata = {"about": about or {}, "checksums": _checksums(state)}
        metrics = None if valid_loss is None else {"valid_loss": valid_loss}
        with _writing(self.folder):
            self._checkpointer.save_async(step, state, metrics=metrics, custom_metadata=metadata)

    def about(self, step: int) -> dict:
        """The description that was saved with a checkpoint; raises DamagedCheckpointError where it cannot be read."""
        return self._metadata(step).custom_metadata["about"]

    def saved_on(self, step: int) -> str:
        """The day, in UTC, on which a checkpoint was saved; raises DamagedCheckpointError where it cannot be read."""
        return datetime.fromtimestamp(self._metadata(step).commit_timestamp_nsecs // 10**9, UTC).date().isoformat()

    def checksum(self, step: int) -> int:
        """Changes with any bit of a checkpoint's state; raises DamagedCheckpointError where it cannot be read."""
        checksums = self._metadata(step).custom_metadata["checksums"]
        return sum((2 * number + 1) * checksums[name] for number, name in enumerate(sorted(checksums))) % 2**32

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """The shape of every array of a checkpoint, by its path with slashes."""
        return _shapes(self._metadata(step).metadata)

    def load(self, step: int, like: Any) -> Any:
        """The state of `step`, with the structure, types and shardings of `like` (arrays or jax.ShapeDtypeStruct).

        A dictionary of some of the state's fields reads only these. Raises CheckpointError where the state does not fit,
        DamagedCheckpointError where it is not what was written.
        """
        saved = self._metadata(step)
        tree, metadata = saved.metadata, saved.custom_metadata
        lost = sorted(set(metadata["checksums"]) - set(_shapes(tree)))
        if lost:
            raise self._damaged(step, f"{len(lost)} of its arrays are not in its index, for example {lost[0]}")
        fields = {name.split("/")[0] for name in _shapes(like)}
        stored = {name: shape for name, shape in _shapes(tree).items() if name.split("/")[0] in fields}
        self._check_shapes(step, stored, _shapes(like))
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            state = self._checkpointer.load(step, abstract)
        except jax.errors.JaxRuntimeError:  # no memory, or another process has ended: the checkpoint may be whole
            raise
        except Exception as error:  # Orbax passes on whatever its readers raise; all of it ends here
            raise self._damaged(step, str(error).splitlines()[0][:200]) from error
        changed = [name for name, checksum in _checksums(state).items() if metadata["checksums"].get(name) != checksum]
        if changed:
            others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise self._damaged(step, f"the checksum of {changed[0]}{others} does not match")
        return state

    def set_aside(self, step: int, why: str) -> Path:
        """Renames a checkpoint that is damaged, see `why`, so that it can be examined; nothing is deleted.

        Raises CheckpointError where only some of several processes find it damaged.
        """
        target = next(path for n in count(1) if not (path := self.folder / f"damaged-{step}-{n}").exists())
        if not processes.all_come("before a checkpoint is set aside", _AT_ONCE):
            raise CheckpointError(
                f"{why}; other processes can read it, so it stays: the same command tries again; with the folder moved away it "
                "goes on from the one before"
            )
        if processes.leads():
            os.rename(self.path(step), target)
        processes.wait_for_all("a checkpoint is set aside")
        self._checkpointer.reload()
        return target

    def wait(self) -> None:
        """Waits until what is being written is whole; raises CheckpointError where it cannot be written."""
        with _writing(self.folder):
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits for what is being written."""
        with _writing(self.folder):
            self._checkpointer.close()

    def _metadata(self, step: int) -> Any:
        """What Orbax knows of a checkpoint: the tree of what was saved, the description and checksums saved with it, times."""
        try:
            saved = self._checkpointer.metadata(step)
        except Exception as error:  # as above
            raise self._damaged(step, str(error).splitlines()[0][:200]) from error
        if not isinstance(saved.custom_metadata, dict) or set(saved.custom_metadata) != {"about", "checksums"}:
            raise self._damaged(step, "its description cannot be read")
        return saved

    def _damaged(self, step: int, why: str) -> DamagedCheckpointError:
        return DamagedCheckpointError(f"{self.path(step)}: checkpoint {step} is damaged: {why}")

    def _check_shapes(self, step: int, stored: dict[str, tuple], expected: dict[str, tuple]) -> None:
        """Reports all arrays that differ before anything is read; Orbax reports one, in a stack trace."""
        different = [
            f"{name} is {stored.get(name, 'missing')}, {expected.get(name, 'nothing')} expected"
            for name in sorted(stored | expected)
            if stored.get(name) != expected.get(name)
        ]
        if different:
            others = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise CheckpointError(
                f"{self.folder}: checkpoint {step} cannot be restored into this model: {'; '.join(different[:3])}{others}"
            )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns a failure to write, of whatever kind Orbax's writers raise, into a CheckpointError of one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # not the disk's fault
        raise
    except Exception as error:
        why = str(error).splitlines()[0][:300]
        raise CheckpointError(
            f"{folder}: a checkpoint cannot be written: {why}; the same command goes on from the last whole one"
        ) from error


def _checksums(tree: Any) -> dict[str, int]:
    """A checksum of every array by its path, which changes with any of its bits; the same on every mesh."""
    # One at a time, see `sharding.settle`.
    return {name: int(_sum_bits(leaf)) for name, leaf in _by_path(tree).items()}


@jax.jit
def _sum_bits(leaf: jax.Array) -> jax.Array:
    """The sum of an array's bits as unsigned integers, uint32 []; compiled for each shape, not for each model."""
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    return jnp.sum(jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32), dtype=jnp.uint32)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every array by its path."""
    return {name: tuple(leaf.shape) for name, leaf in _by_path(tree).items()}


def _by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
