"""Which stages are done: each leaves a marker with the settings and inputs of its outputs, which are kept while these hold."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import file_digest, write_whole
from ecgbyte_jax.run.console import console


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
        return json_digest([self.name, self.settings, self.inputs])

    def begin(self) -> None:
        """Says that the outputs are being made and not to be trusted yet."""
        self._write({"finished": False})

    def finish(self, outputs: Iterable[Path], result: object = None) -> None:
        """Says that the outputs, files or folders, are whole.

        `result`, JSON values, identifies the outputs for the stages that read them; without it the settings and inputs do.
        """
        sizes = {os.path.relpath(path, self.marker.parent): _size(path) for path in outputs}
        identity = self.digest() if result is None else json_digest(result)
        self._write({"finished": True, "outputs": sizes, "result": identity})

    def begun(self) -> bool:
        """Whether the same stage, settings and inputs alike, was begun here (and finished or not)."""
        content = _read_marker(self.marker)
        return content is not None and content["digest"] == self.digest()

    def finished(self) -> bool:
        """Whether the outputs were made by the same settings from the same inputs, and all of them are there."""
        content = _read_marker(self.marker)
        if content is None or not self.begun() or not content["finished"]:
            return False
        return all(_size(self.marker.parent / path) == size for path, size in content["outputs"].items())

    def require(self) -> str:
        """A digest of the finished outputs; raises ConfigError where they are missing or were made otherwise."""
        if self.changes():
            raise ConfigError(
                f"stage '{self.name}' was run with other settings ({self.changes()}); give the same --config flags as then, or "
                "add it to --stage to run it again"
            )
        if not self.finished():
            raise ConfigError(f"{self.marker}: stage '{self.name}' has not finished in this work directory; add it to --stage")
        return outputs_digest(self.marker)

    def changes(self) -> str:
        """What differs from the settings and inputs of an earlier run here, in words; "" where nothing does."""
        content = _read_marker(self.marker)
        if content is None or content["digest"] == self.digest():
            return ""
        old, new = _flatten(content["settings"]), _flatten(json.loads(json.dumps(self.settings)))
        changed = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old | new) if old.get(k) != new.get(k)]
        return "; ".join(changed) or "its inputs are not the same"

    def move_aside(self, folder: Path, *others: Path) -> None:
        """Keeps what other settings or inputs left: `others` go into `folder`, which becomes folder.old-1, -2, ...

        Subfolders with a marker of the same name are of stages of their own, and stay.
        """
        if not folder.exists() or not set(folder.iterdir()) - set(_inner(folder, self.marker.name)):
            return
        target = free_name(folder)
        why = self.changes() or "unknown ones"
        console.print(
            f"{self.name}: {folder.name}/ here was made with other settings or inputs ({why}); moved to {target.name}"
            + ("" if folder.is_symlink() else "; the same --config flags as before bring it back")
        )
        for other in others:  # first, so that they are with their folder wherever a kill leaves it
            if other.exists():
                shutil.move(other, folder / other.name)
        if folder.is_symlink():  # to another disk: there the old and the new outputs are side by side
            real = folder.resolve()
            os.symlink(free_name(real), target)
            os.rename(real, target.readlink())
            real.mkdir()
        else:
            os.rename(folder, target)
        _put_back(target, folder, self.marker.name)

    def take_back(self, folder: Path, *others: Path) -> bool:
        """Puts back what this very stage made here before and `move_aside` kept; what is there now is moved aside.

        Returns whether there was anything to put back. Goes on where an earlier call was killed.
        """
        if self.begun():
            return self._move_out(folder, *others)
        marker = self.marker.relative_to(folder)
        for old in _set_aside(folder):
            content = _read_marker(old / marker)
            if content is None or content["digest"] != self.digest() or old.is_symlink() or folder.is_symlink():
                continue
            self.move_aside(folder, *others)
            if folder.exists():
                for inner in _inner(folder, self.marker.name):
                    if (old / inner.name).exists():
                        os.rename(old / inner.name, free_name(old / inner.name))
                    os.rename(inner, old / inner.name)
                folder.rmdir()  # empty, or it would have been moved aside
            os.rename(old, folder)
            self._move_out(folder, *others)
            console.print(f"{self.name}: {old.name}/ was made with these settings; it is {folder.name}/ again")
            return True
        return False

    def _move_out(self, folder: Path, *others: Path) -> bool:
        """Puts what `move_aside` moved into the folder back beside it; returns whether there was any."""
        moved = [other for other in others if (folder / other.name).exists() and not other.exists()]
        for other in moved:
            shutil.move(folder / other.name, other)
        return bool(moved)

    def _write(self, state: dict) -> None:
        content = {"digest": self.digest(), "settings": self.settings, "inputs": self.inputs, **state}
        write_whole(self.marker, [json.dumps(content, indent=1).encode()])


def repair(folder: Path, marker_name: str) -> None:
    """Puts back stages in subfolders, with markers of this name, that a killed command moved away with their outer folder."""
    for old in _set_aside(folder):
        _put_back(old, folder, marker_name)


def _set_aside(folder: Path) -> list[Path]:
    """What `move_aside` has made of a folder, and nothing of a user's own."""
    found = sorted(folder.parent.glob(f"{folder.name}.old-*"))
    return [path for path in found if re.fullmatch(r".*\.old-\d+", path.name) and path.is_dir()]


def _put_back(old: Path, folder: Path, marker_name: str) -> None:
    for inner in _inner(old, marker_name):
        if not (folder / inner.name).exists():
            folder.mkdir(exist_ok=True)
            os.rename(inner, folder / inner.name)


def _inner(folder: Path, marker_name: str) -> list[Path]:
    return sorted(path for path in folder.iterdir() if (path / marker_name).is_file())


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
    content = _read_marker(marker) or {}
    return content["result"] if content.get("finished") else ""


def digest_of(marker: Path) -> str:
    """`Stage.digest` of the stage that left this marker; "" where there is none."""
    return (_read_marker(marker) or {"digest": ""})["digest"]


def settings_of(marker: Path) -> dict:
    """The settings that the stage which left this marker was run with; {} where there is none."""
    found = (_read_marker(marker) or {}).get("settings")
    return found if isinstance(found, dict) else {}


def _size(path: Path) -> int | None:
    """Bytes of a file, 0 for a folder, None where there is neither."""
    if path.is_dir():
        return 0
    return path.stat().st_size if path.is_file() else None


def json_digest(value: object) -> str:
    """SHA-256 of a value as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def content_digest(files: Iterable[Path]) -> str:
    """SHA-256 of the files' names and contents, wherever their folder is."""
    return json_digest([[file.name, file_digest(file)] for file in files])


def _read_marker(path: Path) -> dict | None:
    """The marker's content; None where there is none or it is not one of ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    known = {"finished", "digest", "settings", "inputs"}
    return content if isinstance(content, dict) and known <= set(content) else None


def _flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
