import numpy as np
import pytest
import wfdb

from ecgbyte_jax.ecg.records import read_record
from ecgbyte_jax.errors import RecordError


@pytest.fixture
def written(tmp_path):
    """A record of two leads with a gain of 1000 per mV; its path without extension."""
    samples = np.array([[0, 100], [1500, -2000], [-7, 32]])
    wfdb.wrsamp(
        "r1", fs=500, units=["mV", "mV"], sig_name=["AVR", "V1"], d_signal=samples, fmt=["16", "16"],
        adc_gain=[1000.0, 1000.0], baseline=[0, 0], write_dir=str(tmp_path),
    )  # fmt: skip
    return tmp_path / "r1"


@pytest.mark.parametrize("ending", ["", ".hea", ".dat"])
def test_record_is_read_in_mv_with_named_leads(written, ending):
    record = read_record(str(written) + ending)
    np.testing.assert_allclose(record.signal, [[0, 1.5, -0.007], [0.1, -2, 0.032]], rtol=1e-6)
    assert record.signal.dtype == np.float32
    assert record.leads == ("aVR", "V1") and record.sample_rate == 500.0


def test_missing_header_is_named(written):
    written.with_suffix(".hea").unlink()
    with pytest.raises(RecordError, match=r"r1\.hea"):
        read_record(written)


def test_missing_signal_file_is_named(written):
    written.with_suffix(".dat").unlink()
    with pytest.raises(RecordError, match=r"r1\.dat"):
        read_record(written)


@pytest.mark.parametrize("size", [0, 1, 4, 7, 8, 11])
def test_truncated_signal_file_is_refused(written, size):
    data = written.with_suffix(".dat")
    data.write_bytes(data.read_bytes()[:size])
    with pytest.raises(RecordError, match="r1"):
        read_record(written)


@pytest.mark.parametrize(
    "header", ["", "garbage", "r1 2 500 3\n", "r1 two 500 3\nr1.dat 16\n", "r1 2 500 3\nr1.dat 16 x/mV\nr1.dat\n"]
)
def test_broken_header_is_refused(written, header):
    written.with_suffix(".hea").write_text(header)
    with pytest.raises(RecordError, match="r1"):
        read_record(written)


@pytest.mark.parametrize("rate", ["nan", "-500", "abc", "0", "inf"])
def test_a_rate_that_is_none_is_refused(written, rate):
    header = written.with_suffix(".hea")
    header.write_text(header.read_text().replace(" 500 ", f" {rate} ", 1))
    with pytest.raises(RecordError, match="r1"):
        read_record(written)


def test_missing_samples_are_refused(written):
    data = bytearray(written.with_suffix(".dat").read_bytes())
    data[4:6] = (-32768).to_bytes(2, "little", signed=True)  # WFDB's mark of a missing sample
    written.with_suffix(".dat").write_bytes(data)
    with pytest.raises(RecordError, match=r"missing samples \(NaN\) in leads \['AVR'\]"):
        read_record(written)


def test_microvolts_are_scaled_and_unknown_units_refused(written):
    header = written.with_suffix(".hea")
    header.write_text(header.read_text().replace("/mV", "/uV"))
    np.testing.assert_allclose(read_record(written).signal[0, 1], 1.5e-3, rtol=1e-6)
    header.write_text(header.read_text().replace("/uV", "/mmHg"))
    with pytest.raises(RecordError, match="mmHg"):
        read_record(written)
