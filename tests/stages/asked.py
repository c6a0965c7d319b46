"""The answers of --stage=ask and of an export's example, to be compared."""

import json
import re
from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.run.console import console
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages.ask import ask
from ecgbyte_jax.stages.inquiry import Inquiry
from tests.launch import finish, start_python


def asked(config: ConfigDict, folder: Path, records: list[str], questions: list[str]) -> list[list[str]]:
    """What --stage=ask answers to the questions, a list for each."""
    with console.capture() as shown:
        ask(Settings.of(config), Workdir(folder), Inquiry(tuple(records), tuple(questions)))
    answers = re.findall(r"^answer     (.*?)   \[\d+ of", shown.get(), re.MULTILINE | re.DOTALL)
    answers = ["" if answer == "(empty)" else answer for answer in answers]
    return [answers[i : i + len(records)] for i in range(0, len(answers), len(records))]


def ask_example(export: Path, records: list[str], questions: list[str]) -> list[list[str]]:
    """The answers of an export's example, a list for each question, where neither jax nor this package can be imported."""
    code = (
        "import json, sys; sys.modules.update(dict.fromkeys(('jax', 'jaxlib', 'flax', 'ecgbyte_jax'), None))\n"
        "sys.path.insert(0, sys.argv[1]); import example\n"
        "print(json.dumps([[example.answer(record, question) for record in json.loads(sys.argv[2])]"
        " for question in json.loads(sys.argv[3])]))"
    )
    output = finish(start_python("-c", code, str(export), json.dumps(records), json.dumps(questions)))
    answers = json.loads(output.splitlines()[-1])
    return [[re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "\ufffd", answer) for answer in row] for row in answers]  # as printed
