"""The answers of --stage=ask and of an export's example, to be compared."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.stages.inquiry import Inquiry
from ecgbyte_jax.stages.pipeline import run
from tests.launch import finish, start_python


def asked(config: ConfigDict, folder: Path, records: list[str], questions: list[str]) -> list[list[str]]:
    """What --stage=ask answers to the questions, a list for each."""
    with redirect_stdout(io.StringIO()) as printed:
        run(config, folder, ["ask"], inquiry=Inquiry(tuple(records), tuple(questions), format="json"))
    answers = [json.loads(line)["answer"] for line in printed.getvalue().splitlines()]
    return [answers[place :: len(questions)] for place in range(len(questions))]


def ask_example(
    export: Path,
    records: list[str],
    questions: list[str],
    without: tuple[str, ...] = ("ecgbyte_jax", "jax", "jaxlib", "flax"),
) -> list[list[str]]:
    """The answers of an export's example, a list for each question, where these packages cannot be imported."""
    code = (
        f"import json, sys; sys.modules.update(dict.fromkeys({without}, None))\n"
        "sys.path.insert(0, sys.argv[1]); import example\n"
        "print(json.dumps([[example.answer(record, question) for record in json.loads(sys.argv[2])]"
        " for question in json.loads(sys.argv[3])]))"
    )
    output = finish(start_python("-c", code, str(export), json.dumps(records), json.dumps(questions)))
    return json.loads(output.splitlines()[-1])
