"""What the answers of a run are worth, by its evaluation."""

from dataclasses import dataclass

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.evaluate.results import summarise
from ecgbyte_jax.report.folder import read_json
from ecgbyte_jax.run.stage import outputs_digest, settings_of
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import SHOWN_AS, Settings


@dataclass(frozen=True)
class Worth:
    """What the answers of a run are worth, in a sentence and in warnings; verdict: its evaluation's, if there is one."""

    sentence: str
    warnings: tuple[str, ...]
    verdict: dict | None

    @classmethod
    def of(cls, settings: Settings, workdir: Workdir) -> "Worth":
        """By the evaluation of the training here."""
        data = "synthetic ECGs" if settings.data.synthetic_records else settings.data.corpus
        warnings, shown = [], settings.data.ecg
        if shown != "own":
            warnings.append(f"it is a control, trained with {SHOWN_AS[shown]} in place of each question's ECG (data.ecg)")
        results = read_json(workdir.results)
        if results is None or "verdict" not in results:
            unknown = "not evaluated, so what its answers are worth is unknown: run --stage=eval"
            return cls(f"trained on {data}; {unknown}", (*warnings, unknown), None)
        try:
            check_evaluated(workdir, results)
        except ConfigError as error:
            return cls(f"trained on {data}; what its answers are worth is unknown: {error}", (*warnings, str(error)), None)
        verdict = results["verdict"]
        if verdict["evidence"] != "reads":
            warnings.append(f"its evaluation shows: {verdict['sentence']}")
        if settings.eval.checkpoint not in (results["checkpoint"], str(results["checkpoint_step"])):
            warnings.append(f"checkpoint {settings.eval.checkpoint} answers, and {results['checkpoint']} was evaluated")
        if settings_of(workdir.answers_marker).get("eval", {}).get("temperature"):
            warnings.append("its evaluation drew answers at random, and here the likeliest one is given")
        return cls(f"trained on {data}; {summarise(results)}", tuple(warnings), verdict)


def check_evaluated(workdir: Workdir, results: dict) -> None:
    """Raises ConfigError where an evaluation's answers come from a checkpoint of another training than the one here."""
    inputs = (read_json(workdir.answers_marker) or {}).get("inputs")
    trained = outputs_digest(workdir.train_marker)
    if results["checkpoint_step"] is not None and not trained:
        raise ConfigError(f"{workdir.checkpoints}: no finished training, so it is unknown which one gave the answers")
    if results["checkpoint_step"] is not None and inputs != trained:
        raise ConfigError(
            f"{workdir.evaluation}: the answers are not of the training in {workdir.checkpoints}; run --stage=eval again"
        )
