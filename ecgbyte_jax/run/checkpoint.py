"""Checkpoints through Orbax: the one file that knows its API."""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from ecgbyte_jax.errors import CheckpointError


class Checkpoints:
    """The checkpoints of one training in `folder`, the newest `keep` of them; each holds a tree of arrays."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder
        self._checkpointer = ocp.training.Checkpointer(
            folder.resolve(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, None where there is none."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def path(self, step: int) -> Path:
        """The folder of one checkpoint."""
        return self.folder / str(step)

    def save(self, step: int, state: Any) -> None:
        """Writes `state` in the background; a checkpoint appears under its name only when it is whole."""
        self._checkpointer.save_async(step, state)

    def load(self, step: int, like: Any) -> Any:
        """The state of `step`, with the structure, types and shardings of `like` (arrays or jax.ShapeDtypeStruct).

        Raises CheckpointError where it is missing or does not fit.
        """
        self._check_shapes(step, like)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            return self._checkpointer.load(step, abstract)
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.folder}: checkpoint {step} cannot be restored into this model: {error}") from error

    def _check_shapes(self, step: int, like: Any) -> None:
        """Orbax tells of one array, in a stack trace; this tells of all that differ, before anything is read."""
        stored, wanted = _shapes(self._checkpointer.metadata(step).metadata), _shapes(like)
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

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every array by its path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
