"""The errors that a user can act on: each message names the place, the value found, the value expected, and what to do."""


class EcgByteError(Exception):
    """Base of all errors raised on purpose; `main.py` prints the message alone, without a stack trace."""


class RecordError(EcgByteError):
    """A recording cannot be used: unreadable, incomplete, or its signal is not an ECG."""


class ExampleError(EcgByteError):
    """One example of a corpus cannot be used (its row, its question or its answer); the others can."""


class CorpusError(EcgByteError):
    """A corpus is not where the config says, or as a whole not in the form that its reader knows."""


class TokenizerError(EcgByteError):
    """A tokenizer cannot be trained, loaded or applied to this input."""


class ConfigError(EcgByteError):
    """A setting is unknown, of the wrong type, or does not fit another setting."""


class SettingsError(ConfigError):
    """Settings that break their rules; `problems` has one line for each."""

    def __init__(self, problems: list[str]):
        super().__init__("; ".join(problems))
        self.problems = problems


class WeightsError(EcgByteError):
    """A folder of model weights cannot be loaded."""


class OutOfMemoryError(EcgByteError):
    """A stage needs more memory than the machine or its devices have."""


class ShardsError(EcgByteError):
    """Token shards are missing, unfinished, or were made by other settings."""


class CheckpointError(EcgByteError):
    """A checkpoint is missing or does not belong to this model or tokenizer."""


class ReportError(EcgByteError):
    """There is nothing to report on, or a file of the run is damaged."""


class TrainingError(EcgByteError):
    """Training cannot go on, for example after a loss that is not finite."""


class StoppedError(EcgByteError):
    """A run was asked to end (SIGTERM) and did, with everything saved; the same command goes on."""


class LockedError(EcgByteError):
    """Another command is at work in the same run folder."""


class ScoresError(EcgByteError):
    """Answers cannot be scored: none of them, a reference missing, or what a score needs is not installed."""
