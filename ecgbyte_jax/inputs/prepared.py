"""Opens the results of preparation: shards, manifest, tokenizers and the prompt's ids."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.files import file_digest
from ecgbyte_jax.inputs.form import Form, open_form
from ecgbyte_jax.inputs.prompt import PromptIds
from ecgbyte_jax.inputs.shards import Manifest, read_manifest
from ecgbyte_jax.inputs.text import load_run_tokenizer
from ecgbyte_jax.run.workdir import Workdir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Prepared:
    """The shards' folder and manifest, the tokenizers, the ids of prompts and their form.

    Where `ids.vectors` is above 0, a model reads the clean segments in `workdir.signals` in place of their tokens.
    """

    shards: Path
    manifest: Manifest
    text_tokenizer: "PreTrainedTokenizerFast"
    ids: PromptIds
    form: Form
    ecg_tokenizer: ECGTokenizer
    workdir: Workdir


def load_prepared(workdir: Workdir, vectors: int = 0) -> Prepared:
    """Opens the shards and tokenizers; raises ShardsError or TokenizerError, naming the file, if one is missing.

    vectors: see `PromptIds`.
    """
    ecg_tokenizer = ECGTokenizer.load(workdir.ecg_tokenizer)
    text_tokenizer = load_run_tokenizer(workdir.text_tokenizer)
    ids = PromptIds.of(text_tokenizer, ecg_tokenizer.bpe.vocab_size, vectors)
    manifest = read_manifest(workdir.shards)
    digests = tokenizer_digests(workdir)
    for name, digest in digests.items():
        if manifest.digests.get(name) != digest:
            raise ShardsError(
                f"{workdir.shards}: written with a {name} other than that in {workdir.tokenizers}; run --stage=prepare again"
            )
    form = open_form(manifest.format, manifest.system, workdir.text_tokenizer, ids, "".join(digests.values()))
    return Prepared(workdir.shards, manifest, text_tokenizer, ids, form, ecg_tokenizer, workdir)


def tokenizer_digests(workdir: Workdir) -> dict[str, str]:
    """Returns the SHA-256 of the tokenizers and of the chat template, by name."""
    folder = workdir.text_tokenizer
    files = {"ecg_tokenizer": workdir.ecg_tokenizer, "text_tokenizer": folder / "tokenizer.json"}
    files["chat_template"] = folder / "chat_template.jinja"
    return {name: file_digest(file) for name, file in files.items() if file.is_file()}
