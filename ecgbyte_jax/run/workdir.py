"""The layout of a run's folder: the one place that spells its paths."""

import json
import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

MARKER = "stage.json"  # the file that a stage leaves in its folder


@dataclass(frozen=True)
class Workdir:
    """Every file and folder of the run in `root`, whether it is there or not.

    evaluation_name: which of several evaluations is meant; "": the one without a name.
    """

    root: Path
    evaluation_name: str = ""

    @property
    def config(self) -> Path:
        """The settings of the last stage that worked here."""
        return self.root / "config.json"

    @property
    def compiled(self) -> Path:
        """Programs that took long to compile."""
        return self.root / "compiled"

    @property
    def cost(self) -> Path:
        """What the run's stages have cost."""
        return self.root / "cost.json"

    @property
    def lock(self) -> Path:
        """There while a command works in this folder."""
        return self.root / "run.lock"

    # What preparation makes.

    @property
    def synthetic(self) -> Path:
        """Recordings and questions that are made where none are given."""
        return self.root / "synthetic"

    @property
    def synthetic_marker(self) -> Path:
        """The marker of the synthetic recordings."""
        return self.synthetic / MARKER

    @property
    def cache(self) -> Path:
        """Symbols of cleaned recordings, unless `prepare.cache` names a folder that several runs share."""
        return self.root / "cache"

    @property
    def prepare_marker(self) -> Path:
        """The marker of stage `prepare`."""
        return self.root / "prepare" / MARKER

    @property
    def quarantine(self) -> Path:
        """The examples that were set aside, with the reasons."""
        return self.root / "prepare" / "quarantine.jsonl"

    @property
    def summaries(self) -> Path:
        """What each task of preparation has written so far."""
        return self.root / "prepare" / "shards"

    @property
    def tokenizers(self) -> Path:
        """The folder of both tokenizers."""
        return self.root / "tokenizer"

    @property
    def ecg_tokenizer(self) -> Path:
        """The ECG tokenizer: percentiles and byte pair encoding in one JSON file."""
        return self.tokenizers / "ecg_tokenizer.json"

    @property
    def text_tokenizer(self) -> Path:
        """A folder as transformers writes it."""
        return self.tokenizers / "text"

    @property
    def tokenizer_marker(self) -> Path:
        """The marker of the ECG tokenizer."""
        return self.tokenizers / MARKER

    @property
    def tokenizer_report(self) -> Path:
        """What --stage=tokenizer measured."""
        return self.tokenizers / "report.json"

    @property
    def tokenizer_report_marker(self) -> Path:
        """The marker of stage `tokenizer`."""
        return self.tokenizers / "report_stage.json"

    @property
    def merges(self) -> Path:
        """The merges as a table, where `tokenizer.merges_csv` asks for it."""
        return self.tokenizers / "merges.csv"

    @property
    def shards(self) -> Path:
        """The token shards with their manifest."""
        return self.root / "shards"

    @property
    def manifest(self) -> Path:
        """What the shards hold, in JSON."""
        return self.shards / "manifest.json"

    @property
    def fit(self) -> Path:
        """Whether the experiment fits some hardware, and what a step costs there."""
        return self.root / "fit.json"

    # What training makes.

    @property
    def checkpoints(self) -> Path:
        """The training's checkpoints."""
        return self.root / "checkpoints"

    @property
    def train_marker(self) -> Path:
        """The marker of stage `train`."""
        return self.checkpoints / MARKER

    @property
    def metrics(self) -> Path:
        """One JSON line a training step."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's files."""
        return self.root / "tensorboard"

    @property
    def profile(self) -> Path:
        """A JAX profile, where --profile_steps asks for one."""
        return self.root / "profile"

    @property
    def wandb_run(self) -> Path:
        """The id of the training's run at Weights & Biases."""
        return self.root / "wandb_run.txt"

    # What the first stage of a two-stage baseline makes.

    @property
    def signals(self) -> Path:
        """Clean segments in mV, numbered as in the shards."""
        return self.root / "signals"

    @property
    def signals_marker(self) -> Path:
        """The marker of the clean segments."""
        return self.signals / MARKER

    @property
    def reports_marker(self) -> Path:
        """The marker of the reports' features."""
        return self.root / "reports" / MARKER

    @property
    def report_features(self) -> Path:
        """The features of the reports that an encoder is trained to agree with."""
        return self.root / "reports" / "features.npy"

    @property
    def pretrain(self) -> "Workdir":
        """The encoder's training, with checkpoints and figures as a run has them."""
        return Workdir(self.root / "pretrain")

    @property
    def encoder_health(self) -> Path:
        """What the trained encoder restores and knows, in JSON; of `pretrain`."""
        return self.root / "health.json"

    # What evaluation and the stages after it make.

    @property
    def evaluation(self) -> Path:
        """The folder of an evaluation; those with a name are inside the one without."""
        return self.root / "eval" / self.evaluation_name

    def evaluations(self) -> "list[Workdir]":
        """Of each evaluation that has scores, first the one without a name; this one where there is none."""
        files = Workdir(self.root).evaluation.glob(f"*/{self.results.name}")
        named = [Workdir(self.root, path.parent.name) for path in files if "." not in path.parent.name]  # none set aside
        found = [Workdir(self.root), *sorted(named, key=lambda workdir: workdir.evaluation_name)]
        return [workdir for workdir in found if os.path.isfile(workdir.results)] or [self]

    @property
    def answers_marker(self) -> Path:
        """The marker of the answers."""
        return self.evaluation / "answers.json"

    @property
    def scores_marker(self) -> Path:
        """The marker of stage `eval`."""
        return self.evaluation / MARKER

    @property
    def evaluated(self) -> Path:
        """Which checkpoint and split the answers are of."""
        return self.evaluation / "checkpoint.json"

    @property
    def generations(self) -> Path:
        """One JSON line a question, segment and seed."""
        return self.evaluation / "generations.jsonl"

    @property
    def probabilities(self) -> Path:
        """One JSON line a question and segment: the log-probabilities of its candidate answers."""
        return self.evaluation / "probabilities.jsonl"

    @property
    def probabilities_marker(self) -> Path:
        """The marker of the probabilities."""
        return self.evaluation / "probabilities.json"

    @property
    def results(self) -> Path:
        """The scores."""
        return self.evaluation / "results.json"

    @property
    def attention(self) -> Path:
        """What --stage=attend writes."""
        return self.root / "attention" / self.evaluation_name

    @property
    def report(self) -> Path:
        """The page of --stage=report."""
        return self.root / f"report{self._ending}.html"

    @property
    def report_marker(self) -> Path:
        """The marker of stage `report`."""
        return self.root / f"report{self._ending}_stage.json"

    @property
    def export(self) -> Path:
        """The model that --stage=export writes."""
        return self.root / "export"

    @property
    def controls(self) -> Path:
        """The runs of --stage=controls that were trained without their own ECGs."""
        return self.root / "controls"

    @property
    def controls_table(self) -> Path:
        """What they and this run score."""
        return self.root / "controls.json"

    @property
    def systems(self) -> Path:
        """The runs of --stage=headline."""
        return self.root / "systems"

    @property
    def headline(self) -> Path:
        """The page on what they score and cost."""
        return self.root / "headline.html"

    @property
    def headline_table(self) -> Path:
        """The same in JSON."""
        return self.root / "headline.json"

    @property
    def _ending(self) -> str:
        return f"-{self.evaluation_name}" if self.evaluation_name else ""


def is_run(folder: Path) -> bool:
    """Whether a stage has left anything in this folder."""
    workdir = Workdir(folder)
    left = (workdir.prepare_marker, workdir.tokenizer_marker, workdir.manifest, workdir.results)
    return any(os.path.isfile(path) for path in left) or _holds_settings(workdir.config)


def _holds_settings(config: Path) -> bool:
    """Whether a config.json is a run's, or damaged, and not that of a model; False where it may not be read."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:
        return True
    return isinstance(content, dict) and "data" in content


def runs_beside(folder: Path) -> str:
    """Names the runs next to a folder that does not exist, similar names first; "" where there are none."""
    try:
        names = sorted(path.name for path in folder.parent.iterdir() if is_run(path))
    except OSError:
        return ""
    alike = get_close_matches(folder.name, names, 3) or names[:5]
    more = ", ..." if len(names) > len(alike) else ""
    return f"; runs beside it: {', '.join(str(folder.parent / name) for name in alike)}{more}" if names else ""
