"""Stage `attend`: where in the ECG and in the question the answers of chosen examples come from."""

from ecgbyte_jax.asking.worth import check_evaluated
from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.evaluate.results import answered_by
from ecgbyte_jax.explain.explain import rate_of, views
from ecgbyte_jax.explain.views import file_stem
from ecgbyte_jax.pretrain.clean import clean_signals
from ecgbyte_jax.report.attention import draw_attention
from ecgbyte_jax.report.folder import choose_examples, first_seed, read_evaluation
from ecgbyte_jax.report.save import save_picture
from ecgbyte_jax.run.console import banner
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import AttendSettings, Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.train.restore import Trained, open_trained
from ecgbyte_jax.train.vectors import check_drawable


def attend(settings: Settings, workdir: Workdir) -> None:
    """Writes <example>.npz, .png and .svg for the evaluated examples `attend.examples`, or the report's."""
    check_drawable(settings, "--stage=attend")
    results, rows = read_evaluation(workdir.results, workdir.generations)
    rows = choose_rows(rows, settings.attend, settings.seed, workdir)
    trained = open_attended(settings, workdir, results)
    written = {}
    for row, view in views(trained, settings.attend, workdir, results["split"], rows):
        file = workdir.attention / f"{file_stem(row)}.npz"
        for number, ecg in enumerate(view.ecgs, start=1):
            title = f"{row['id']}: {row['question']} {row['answer']}"
            how = {"seen": ecg.seen, "title": title, "about": ecg.about}
            figure = draw_attention(ecg.signal, ecg.samples["attention"], rate_of(settings), **how)
            for kind in ("png", "svg"):
                save_picture(figure, file.with_name(f"{file.stem}{'' if number == 1 else f'_{number}'}.{kind}"))
        written[row["id"]] = file
    banner("attention", written)


def open_attended(settings: Settings, workdir: Workdir, results: dict) -> Trained:
    """The model that gave an evaluation's answers, with what it read of the ECGs in place.

    Raises ConfigError where it is not here.
    """
    check_evaluated(workdir, results)
    lineage.trained(settings, workdir).require()
    if settings.ecg_input.kind != "tokens":
        clean_signals(settings, workdir)
    return open_trained(settings, workdir, answered_by(results))


def choose_rows(rows: list[dict], attend: AttendSettings, seed: int, workdir: Workdir) -> list[dict]:
    """The rows of `attend.examples`, all segments of each, or the report's; raises ConfigError for one not evaluated."""
    if not attend.examples:
        return [chosen.row for chosen in choose_examples(rows, seed)]
    unknown = sorted(set(attend.examples) - {row["id"] for row in rows})
    if unknown:
        raise ConfigError(f"attend.examples: {unknown} found, ids of examples in {workdir.generations} expected")
    return [row for row in first_seed(rows) if row["id"] in attend.examples]
