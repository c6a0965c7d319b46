"""Which stages are done: each leaves a marker with the settings and inputs that made it, and is kept while they hold."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run.logbook import console

_SIGNALS = ("seed", "data", "signal", "tokenizer", "prepare")
_PREPARED = (*_SIGNALS, "prompt")
# The parts of the settings that a stage's outputs depend on, with those that say where and how it ran.
_PARTS = {
    "tokenizer": _SIGNALS,
    "prepare": _PREPARED,
    "train": (*_PREPARED, "model", "lora", "optim", "train", "mesh", "distributed"),
    "eval": ("eval",),
    "export": ("export",),
}


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its name, its marker file, its settings as plain JSON values, and the digest of its inputs."""

    name: str
    marker: Path
    settings: dict
    inputs: str

    @classmethod
    def on_disk(cls, name: str, marker: Path, settings: dict) -> "Stage":
        """The stage with the inputs that it was run on here, for those who use its outputs and not its inputs."""
        return cls(name, marker, settings, (_read_marker(marker) or {"inputs": ""})["inputs"])

    def digest(self) -> str:
        """Stands for everything that this stage's outputs depend on."""
        return digest([self.name, self.settings, self.inputs])

    def begin(self) -> None:
        """Says that the outputs are being made and not to be trusted yet."""
        self._write({"finished": False})

    def finish(self, outputs: Iterable[Path], result: object = None) -> None:
        """Says that the outputs, files or folders, are whole. `result` stands for them where the same run can give others."""
        sizes = {os.path.relpath(path, self.marker.parent): _size(path) for path in outputs}
        self._write({"finished": True, "outputs": sizes, "result": digest(result)})

    def begun(self) -> bool:
        """Whether the same stage, settings and inputs alike, was begun here (and finished or not)."""
        found = _read_marker(self.marker)
        return found is not None and found["digest"] == self.digest()

    def finished(self) -> bool:
        """Whether the outputs were made by the same settings from the same inputs, and all of them are there."""
        found = _read_marker(self.marker)
        if not self.begun() or not found["finished"]:
            return False
        return all(_size(self.marker.parent / path) == size for path, size in found["outputs"].items())

    def require(self) -> str:
        """A digest of the finished outputs; raises ConfigError where they are missing or were made otherwise."""
        if self.changes():
            raise ConfigError(f"stage '{self.name}' was run otherwise ({self.changes()}); add it to --stage to run it again")
        if not self.finished():
            raise ConfigError(f"{self.marker}: stage '{self.name}' has not finished in this work directory; add it to --stage")
        return outputs_digest(self.marker)

    def changes(self) -> str:
        """What differs from the settings and inputs of an earlier run here, in words; "" where nothing does."""
        found = _read_marker(self.marker)
        if found is None or found["digest"] == self.digest():
            return ""
        old, new = _flatten(found["settings"]), _flatten(json.loads(json.dumps(self.settings)))
        changed = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old | new) if old.get(k) != new.get(k)]
        return "; ".join(changed) or "its inputs are not the same"

    def move_aside(self, workdir: Path, folder: str, *others: str) -> None:
        """Keeps what other settings or inputs left: `folder` becomes folder.old-1, -2, ..., and `others` go into it."""
        place = workdir / folder
        if not place.exists() or not any(place.iterdir()):
            return
        target = free_name(place)
        why = self.changes() or "unknown ones"
        console.print(
            f"{self.name}: {folder}/ here is of other settings or inputs ({why}); moved to {target.name}", markup=False
        )
        if place.is_symlink():  # to another disk: there the old and the new outputs lie beside each other
            real = place.resolve()
            os.symlink(free_name(real), target)
            os.rename(real, target.readlink())
            real.mkdir()
        else:
            os.rename(place, target)
        for name in others:
            if (workdir / name).exists():
                shutil.move(workdir / name, target / name)

    def _write(self, more: dict) -> None:
        content = {"digest": self.digest(), "settings": self.settings, "inputs": self.inputs, **more}
        write_whole(self.marker, [json.dumps(content, indent=1).encode()])


def free_name(folder: Path) -> Path:
    """folder.old-1, -2, ..., the first that is not there."""
    return next(path for n in count(1) if not os.path.lexists(path := folder.with_name(f"{folder.name}.old-{n}")))


def not_made_by(marker: Path) -> list[Path]:
    """The files in a marker's folder that its stage has not made, or that were changed since."""
    made = (_read_marker(marker) or {}).get("outputs", {})
    since = marker.stat().st_mtime if made else 0.0
    return [
        path
        for path in sorted(marker.parent.rglob("*"))
        if path != marker
        and not path.is_dir()
        and (made.get(str(path.relative_to(marker.parent))) != _size(path) or path.stat().st_mtime > since)
    ]


def outputs_digest(marker: Path) -> str:
    """Stands for the outputs of the stage that left this marker; "" where none has finished."""
    found = _read_marker(marker) or {}
    return digest([found["digest"], found["result"]]) if found.get("finished") else ""


def keep_settings(config: ConfigDict, workdir: Path, stage: str) -> None:
    """Writes the parts of the settings that this stage has worked with into config.json, and leaves the others there."""
    file = workdir / "config.json"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        kept = {}
    given = json.loads(config.to_json_best_effort())
    write_whole(file, [json.dumps(kept | {part: given[part] for part in _PARTS[stage]}, indent=1).encode()])


def _size(path: Path) -> int | None:
    """Bytes of a file, 0 for a folder, None where there is neither."""
    if path.is_dir():
        return 0
    return path.stat().st_size if path.is_file() else None


def digest(value: object) -> str:
    """SHA-256 of a value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fingerprint(files: Iterable[Path], base: Path) -> str:
    """Changes when one of the files (named relative to `base`) changes its size or time, comes or goes."""
    rows = []
    for file in files:
        try:
            stat = file.stat()
            rows.append([os.path.relpath(file, base), stat.st_size, stat.st_mtime_ns])
        except FileNotFoundError:
            rows.append([os.path.relpath(file, base), None, None])
    return digest(rows)


def _read_marker(path: Path) -> dict | None:
    """The marker's content; None where there is none or it is not one of ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) and {"finished", "digest", "settings", "inputs"} <= set(found) else None


def _flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
