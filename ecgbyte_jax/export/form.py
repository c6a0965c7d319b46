"""The form of a model's input and of its answers, in JSON: what a program needs to know beside weights and tokenizers."""

import json
from dataclasses import asdict, fields
from pathlib import Path

from ecgbyte_jax.ecg.clean_config import CleanConfig
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.encoders.config import FOLDER
from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.inputs.prompt import PromptIds
from ecgbyte_jax.inputs.text import SIG_END, SIG_START
from ecgbyte_jax.settings import Settings

_TOKENS = {
    "flattened": "a segment's leads one after the other, each from its first sample to its last",
    "token_names": "the text tokenizer's signal_N; N is 97 + letter for ids 0 to 25 of ecg_tokenizer.json (a to z), "
    "256 + merge for those after them",
}
_CUT = (
    "at the ECG's end: it keeps max_length - 1 - the prompt's other tokens; two ECGs in equal shares, with what a shorter one "
    "leaves going to the longer one"
)
_NEVER = "never: a prompt that with its vectors is longer than max_length - 1 is refused"


def write_form(folder: Path, settings: Settings, ids: PromptIds, system: str) -> None:
    """Writes `input.json`: cleaning, segments, the ECG's tokens or vectors, the prompt's order and length. Raises OSError.

    system: of the prompts, "" where they are plain.
    """
    cleaning = _cleaning(settings)
    special = {name: value for name, value in asdict(ids).items() if name not in ("ecg", "vectors")}
    form = {
        "ecg": {
            "leads": LEADS,
            "unit": "mV",
            "cleaning": cleaning,
            "rate_hz": settings.signal.target_rate or None,  # None: each recording's own
            "segment_samples": settings.signal.segment_length,
            "segments": "complete ones from the recording's start; what is left at its end is not used",
            **(_vectors(ids) if ids.vectors else _TOKENS),
        },
        "prompt": {
            "format": settings.prompt.format,
            **_order(settings.prompt.format, ids, system),
            "ids": special,
            "max_length": settings.prompt.max_length,
            "cut": _NEVER if ids.vectors else _CUT,
            "question": "encoded without special tokens; their spelling counts as text",
        },
        "answer": {
            "decoding": "always the likeliest token, until an end token or max_new_tokens; rows of the vocabulary beyond the "
            "text tokenizer's are never chosen (generation_config.json)",
            "max_new_tokens": settings.eval.max_new_tokens,
            "recording": "each segment is answered; the commonest answer counts, among equally common ones the one with the "
            "most probable instance (sum of its tokens' log-probabilities, that of the end included)",
        },
    }
    _write(folder / "input.json", form)


def check_form(folder: Path, settings: Settings) -> None:
    """Raises ConfigError where an export's model was trained on signals or prompts of other settings than these.

    Cleaning, segments and the form of the prompt are compared; a folder without `input.json` is not an export.
    """
    file = folder / "input.json"
    if not file.is_file():
        return
    try:
        form = json.loads(file.read_text(encoding="utf-8"))
        theirs = form["ecg"]["cleaning"] | {"segment_length": form["ecg"]["segment_samples"]}
        theirs = {f"signal.{name}": value for name, value in theirs.items()} | {"prompt.format": form["prompt"]["format"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file}: not the input.json of an export ({type(error).__name__}: {error}); export it again"
        ) from error
    ours = {f"signal.{name}": value for name, value in _cleaning(settings).items()}
    ours |= {"signal.segment_length": settings.signal.segment_length, "prompt.format": settings.prompt.format}
    ours = json.loads(json.dumps(ours))
    different = [
        f"{name}: {ours[name]!r} found, {theirs[name]!r} in the export"
        for name in ours
        if name in theirs and theirs[name] != ours[name]
    ]
    if different:
        raise ConfigError(f"{file}: its model was trained on other input: {'; '.join(different)}; prepare with its settings")


def _cleaning(settings: Settings) -> dict[str, object]:
    return {field.name: getattr(settings.signal, field.name) for field in fields(CleanConfig)}


def _vectors(ids: PromptIds) -> dict:
    return {
        "vectors": ids.vectors,
        "place_id": ids.place,
        "read_as": f"each segment by the map in {FOLDER} as vectors, in place of the embeddings of as many place_id",
    }


def _order(format: str, ids: PromptIds, system: str) -> dict:
    """Of a prompt's parts."""
    ecg = [SIG_START, "ECG", SIG_END]
    if format == "chat":
        about = f"the text tokenizer's chat template; the first user turn begins with {' '.join(ecg)}, once for each ECG; "
        about += "given enable_thinking=False and, where it writes the day, 26 Jul 2024"
        return {"order": about, "system": system}
    start = [] if ids.bos is None else ["bos"]
    return {"order": [*start, *ecg, "question"], "two_ecgs": [*start, *ecg, *ecg, "question"], "system": ""}


def write_generation(folder: Path, settings: Settings, ids: PromptIds, stops: tuple[int, ...], tokens: int, rows: int) -> None:
    """Writes `generation_config.json`, with which transformers decodes as this package does. Raises OSError.

    stops: the ids that end an answer; tokens: of the text tokenizer; rows: of the model's vocabulary, of which those beyond the
    tokens are never chosen.
    """
    generation = {
        "bos_token_id": ids.bos,
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "pad_token_id": ids.pad,
        "do_sample": False,
        "max_new_tokens": settings.eval.max_new_tokens,
        "suppress_tokens": list(range(tokens, rows)) or None,
    }
    _write(folder / "generation_config.json", generation)


def _write(path: Path, content: dict) -> None:
    write_whole(path, [f"{json.dumps(content, indent=1)}\n".encode()])
