"""The code that an export brings: that of the package, without the package."""

import json

import numpy as np
import pytest

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.ecg.signal import clean, segment
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.ecg.synthetic import SAMPLE_RATE, random_heart, synthesize
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.export.code import write_code, write_example
from tests.launch import ROOT, finish, start_python

PACKAGE = ROOT / "ecgbyte_jax"
ENCODE = """if True:
    import json, sys
    sys.modules.update(dict.fromkeys(("jax", "jaxlib", "flax", "ecgbyte_jax"), None))
    folder = sys.argv[1]
    sys.path.insert(0, folder)
    import numpy as np
    from ecgbyte_numpy import own, prompt, text
    from ecgbyte_numpy.records import LEADS, Record
    from ecgbyte_numpy.signal import clean, segment
    from ecgbyte_numpy.tokenizer import ECGTokenizer
    record = Record(np.load(f"{folder}/record.npy") / 1000, 500.0, LEADS)
    tokenizer = ECGTokenizer.load(f"{folder}/ecg_tokenizer.json")
    print(json.dumps([ids.tolist() for ids in tokenizer.encode_batch(segment(clean(record), 500))]))
"""


def test_the_copied_code_gives_the_package_s_ids_where_neither_it_nor_jax_is_installed(tmp_path, rng):
    signal = synthesize(random_heart(rng), rng)
    segments = segment(clean(Record(signal / 1000, SAMPLE_RATE, LEADS)), 500)
    quantizer = Quantizer(-0.5, 0.5)
    tokenizer = ECGTokenizer(quantizer, BPE.train(quantizer.encode(segments), 50))
    tokenizer.save(tmp_path / "ecg_tokenizer.json")
    np.save(tmp_path / "record.npy", signal)
    write_code(tmp_path)
    printed = finish(start_python("-c", ENCODE, str(tmp_path)))
    assert json.loads(printed.splitlines()[-1]) == [ids.tolist() for ids in tokenizer.encode_batch(segments)]


def test_every_module_is_copied_under_its_own_name_and_imports_no_other_package(tmp_path):
    write_code(tmp_path)
    files = list((tmp_path / "ecgbyte_numpy").glob("*.py"))
    others = {"errors.py", "files.py", "rules.py", "votes.py"}
    others |= {"chat.py", "form.py", "plain.py", "prompt.py", "text.py"}
    copied = [*(PACKAGE / "ecg").glob("*.py"), *(PACKAGE / "ecg/formats").glob("*.py")]
    assert {file.name for file in files} == {file.name for file in copied} | others
    for file in files:
        assert "from ecgbyte_jax" not in file.read_text() and "import ecgbyte_jax" not in file.read_text(), file


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("rows", [0, 512])
def test_the_example_is_python_that_fits_on_a_page(tmp_path, rows, vectors):
    write_example(tmp_path, rows, vectors=vectors)
    text = (tmp_path / "example.py").read_text()
    compile(text, "example.py", "exec")
    assert len(text.splitlines()) < 80 and ("PeftModel" in text) == bool(rows) and "{" + "%" not in text
    assert ("load_ecg_input" in text) == vectors and ("ECGTokenizer" in text) != vectors


def test_the_map_to_vectors_is_copied_for_models_that_read_these_alone(tmp_path):
    for folder, vectors in (("tokens", False), ("vectors", True)):
        write_code(tmp_path / folder, vectors)
        names = {file.name for file in (tmp_path / folder / "ecgbyte_numpy").glob("*.py")}
        assert {file.name for file in (PACKAGE / "encoders").glob("*.py")} <= names or not vectors
        assert ("ecg_input.py" in names) == vectors
    copied = [*(PACKAGE / "ecg").glob("[!_]*.py"), *(PACKAGE / "encoders").glob("[!_]*.py")]
    assert len({file.name for file in copied}) == len(copied)  # the folder is flat
    assert not [file for file in (tmp_path / "vectors").rglob("*.py") if "import ecgbyte_jax" in file.read_text()]
