"""The recordings that users have sent, in memory, the latest used ones; and the run's demo recordings.

Any pair of them may be asked about, so what the model reads of them is bounded by itself.
"""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ecgbyte_jax.asking.subject import Subject
from ecgbyte_jax.inputs.recording import Recording
from ecgbyte_jax.serve.errors import ApiError
from ecgbyte_jax.train.restore import Trained


@dataclass(frozen=True, eq=False)
class Demo:
    """A recording of the run's own: its id, its name, and how it is read."""

    id: str
    name: str
    read: Callable[[], Recording]


class Store:
    """Recordings by id, and what the model reads of them; any thread may use it."""

    def __init__(self, trained: Trained, most_bytes: int, demos: Sequence[Demo]):
        self.demos = {demo.id: demo for demo in demos}
        self._trained, self._most = trained, most_bytes
        self._recordings: OrderedDict[str, Recording] = OrderedDict()
        self._subjects: OrderedDict[tuple[str, ...], tuple[Subject, int]] = OrderedDict()  # with their bytes
        self._lock = threading.Lock()

    def add(self, recording: Recording) -> str:
        """Keeps a recording; returns its id, which nobody can guess."""
        id = f"rec-{secrets.token_urlsafe(12)}"
        with self._lock:
            self._put(id, recording)
        return id

    def get(self, id: str) -> Recording:
        """Raises ApiError for an id that is not, or no longer, known."""
        with self._lock:
            if id in self._recordings:
                self._recordings.move_to_end(id)
                return self._recordings[id]
        if id not in self.demos:
            raise ApiError(404, f"recording {id[:60]!r} found, the id of one that was sent a while ago at most expected", "id")
        recording = self.demos[id].read()
        with self._lock:
            self._put(id, recording)
        return recording

    def remove(self, id: str) -> None:
        """Forgets a recording; raises ApiError where there is none."""
        self.get(id)
        with self._lock:
            self._drop(id)

    def subject(self, ids: tuple[str, ...]) -> Subject:
        """The recordings as one subject, see `Subject.of`; raises ApiError as `get` does."""
        recordings = [self.get(id) for id in ids]
        with self._lock:
            if ids in self._subjects:
                self._subjects.move_to_end(ids)
                return self._subjects[ids][0]
        rates = sorted({recording.clean_rate for recording in recordings})
        if len(rates) > 1:
            found = " and ".join(f"{rate:g}" for rate in rates)
            raise ApiError(400, f"recordings at {found} Hz found, of one rate expected by signal.target_rate 0", "recordings")
        subject = Subject.of(self._trained, recordings)
        with self._lock:
            if all(id in self._recordings for id in ids):
                self._subjects[ids] = subject, sum(ecg.nbytes for ecgs in subject.segments for ecg in ecgs)
                while sum(size for _, size in self._subjects.values()) > self._most and len(self._subjects) > 1:
                    self._subjects.popitem(last=False)
        return subject

    def unread(self, id: str) -> bool:
        """Whether it is a demo recording that is not in memory."""
        with self._lock:
            return id in self.demos and id not in self._recordings

    def _put(self, id: str, recording: Recording) -> None:
        self._recordings[id] = recording
        while sum(each.segments.nbytes for each in self._recordings.values()) > self._most and len(self._recordings) > 1:
            self._drop(next(iter(self._recordings)))

    def _drop(self, id: str) -> None:
        self._recordings.pop(id, None)
        for ids in [ids for ids in self._subjects if id in ids]:
            del self._subjects[ids]
