"""Runs inside a run: they work on its prepared data."""

import os
from collections.abc import Iterable
from pathlib import Path

from ecgbyte_jax.run.processes import leads, wait_for_all
from ecgbyte_jax.run.workdir import Workdir


def share(workdir: Workdir, inner: Path, besides: Iterable[Path] = ()) -> Workdir:
    """The run in the folder `inner` of a run, whose prepared data are links to this run's.

    Likewise what there is of `besides`. The links stay right where both are moved together.
    """
    folder = Workdir(inner)
    if leads():
        folder.root.mkdir(parents=True, exist_ok=True)
        shared = workdir.prepare_marker.parent, workdir.tokenizers, workdir.shards
        for path in (*shared, *(path for path in besides if path.exists())):
            link = folder.root / path.name
            if not os.path.lexists(link):
                link.symlink_to(os.path.relpath(path, folder.root.resolve()))
    wait_for_all(f"the folder {inner}")
    return folder
