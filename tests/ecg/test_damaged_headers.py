"""Randomly damaged headers are either read or refused with a RecordError."""

import numpy as np
import pytest
import wfdb

from ecgbyte_jax.ecg.formats.own import read_own
from ecgbyte_jax.ecg.records import LEADS, read_record
from ecgbyte_jax.ecg.signal import clean
from ecgbyte_jax.errors import RecordError

CASES = 3000
FORMATS = ["16", "16", "16", "24", "32", "80", "212", "508", "516", "524"]
ODD = [
    "",
    "0",
    "-0",
    "-1",
    "1",
    "²",
    "٣",
    "9" * 5000,
    "1e999",
    "-1e999",
    "1e-999",
    "5e8",
    "nan",
    "inf",
    ".",
    "..",
    "/",
    "~",
    "x",
    "#",
]
ODD += [
    "16x2",
    "16:3",
    "16+24",
    "16x0",
    "212",
    "8",
    "160",
    "310",
    "311",
    "516",
    "0/mV",
    "200/µV",
    "200(/mV",
    "1e5(7)/V",
    "(5)",
    "/",
    "99999999999",
]
ODD += [
    "-32768",
    "2147483648",
    "18446744073709551616",
    "\0",
    "\ufeff",
    "\x85",
    "\u2028",
    "a\tb",
    "\U0001f493",
    "r/2",
    "100/mmHg",
]


def write_records(folder, rng) -> list[str]:
    """Writes signal files to `folder` and returns header texts: many formats, frames, skew, and segments."""
    for number, form in enumerate(FORMATS):
        samples = np.cumsum(rng.integers(-3, 4, (600, 12)), axis=0).clip(-100, 100)
        wfdb.wrsamp(
            f"r{number}", fs=100, units=["mV"] * 12, sig_name=list(LEADS), d_signal=samples, fmt=[form] * 12,
            adc_gain=[100.0] * 12, baseline=[0] * 12, write_dir=str(folder),
        )  # fmt: skip
    texts = [(folder / f"r{number}.hea").read_text() for number in range(len(FORMATS))]
    stored = np.fromfile(folder / "r1.dat", "<i2")
    stored.astype(">i2").tofile(folder / "r61.dat")
    stored.reshape(300, 2, 12).swapaxes(1, 2).tofile(folder / "rx2.dat")
    texts.append(texts[1].replace("r1.dat 16 ", "r61.dat 61 "))
    texts.append(texts[1].replace("r1.dat 16 ", "rx2.dat 16x2 ").replace("100 600", "50 300"))
    texts.append(texts[2].replace(".dat 16 ", ".dat 16:5 ", 2))
    return [*texts, "all/2 12 100 1200\nr0 600\nr1 600\n", "all/3 12 100 1200\nlayout 0\nr0 600\nr8 600\n"]


def damage(text: str, rng) -> str:
    """One or two changes of fields, lines or single characters."""
    for _ in range(rng.integers(1, 3)):
        lines = text.split("\n")
        row = rng.integers(len(lines))
        fields = lines[row].split(" ")
        column = rng.integers(len(fields))
        match rng.integers(6):
            case 0:
                fields[column] = str(rng.choice(ODD))
            case 1:
                fields.insert(column, str(rng.choice(ODD)))
            case 2:
                fields = fields[: column + 1]
            case 3:
                fields[column] = fields[column][: rng.integers(len(fields[column]) + 1)] + chr(rng.integers(1, 256))
            case 4:
                fields[column] += str(rng.integers(10))
            case _:
                fields = lines[rng.integers(len(lines))].split(" ")
        lines[row] = " ".join(fields)
        text = "\n".join(lines)
    return text


@pytest.mark.slow
def test_damaged_headers_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    texts = write_records(tmp_path, rng)
    read = 0
    for case in range(CASES):
        text = damage(texts[case % len(texts)], rng)
        (tmp_path / "damaged.hea").write_bytes(text.encode("latin-1" if case % 5 == 0 else "utf-8", "replace"))
        for reader in (read_record, lambda path: read_own(path).record):
            try:
                cleaned = clean(reader(tmp_path / "damaged"))
            except RecordError as error:
                assert "\n" not in str(error), (case, text)
            except Exception as error:
                pytest.fail(f"case {case}, {text!r}: {error!r}")
            else:
                assert np.isfinite(cleaned).all(), (case, text)
                read += reader is read_record
    assert CASES // 20 < read < CASES // 2  # some damage is harmless
