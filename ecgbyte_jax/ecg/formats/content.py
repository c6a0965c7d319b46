"""Which format a file has, by what is in it; its name counts only where a format has no mark of its own."""

from pathlib import Path
from typing import Literal

from ecgbyte_jax.ecg.formats.library import reading, require
from ecgbyte_jax.errors import RecordError

Kind = Literal["csv", "npy", "mat", "dicom", "edf", "muse", "sierra", "aecg", "scp", "wfdb"]
EXPECTED = (
    "a WFDB record (its .hea and .dat), a .csv, .npy or .mat file, DICOM, EDF, SCP-ECG, or the XML of MUSE, Philips or HL7 aECG"
)
# Larger files are refused before they are read: a day of twelve leads at 500 Hz is 1 GB in 16 bits. An ECG of ten seconds has
# 1 MB in XML and 50 kB in SCP-ECG, and both are read by much larger objects.
_MOST_BYTES, _MOST_PARSED = 1 << 30, 1 << 24
_HEAD = 512  # bytes that tell a format
_ROOTS: dict[str, Kind] = {"RestingECG": "muse", "restingecgdata": "sierra", "AnnotatedECG": "aecg"}
_ENDINGS: dict[str, Kind] = {".csv": "csv", ".npy": "npy", ".mat": "mat"}
_OTHERS = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x89HDF": "an HDF5 file",
    b"MATLAB 7.3": "a MATLAB 7.3 file (save it with -v7)",
    b"\xffBIOSEMI": "a BDF file",
    b"ISHNE1.0": "an ISHNE Holter file",
}


def kind_of(path: Path) -> Kind:
    """The format of a file; raises RecordError if it is none that is read, is empty or too large, or cannot be read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    if not head:
        raise RecordError(f"{path}: an empty file found, {EXPECTED} expected")
    other = next((name for mark, name in _OTHERS.items() if head.startswith(mark)), "")
    if other:
        raise RecordError(f"{path}: {other} found, {EXPECTED} expected")
    if head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"<"):  # with the marks of UTF-8 and UTF-16
        _check_size(path, size, _MOST_PARSED)
        return _kind_of_root(path)
    if head[16:22] == b"SCPECG":  # in the header of section 0, EN 1064
        _check_size(path, size, _MOST_PARSED)
        return "scp"
    _check_size(path, size, _MOST_BYTES)
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"0       ") and head[184:192].strip().isdigit() and head[252:256].strip().isdigit():
        return "edf"  # its version, the bytes of its header, the number of its signals
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"MATLAB 5.0 MAT-file"):
        return "mat"
    ending = path.suffix.lower()
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    found = f"{ending or 'a file without an ending'} found, which is not read"
    found = f"its header {path.stem}.hea is missing" if ending == ".dat" else found
    raise RecordError(f"{path}: {found}; {EXPECTED} expected")


def _check_size(path: Path, size: int, most: int) -> None:
    if size > most:
        raise RecordError(f"{path}: {size / 1e6:.0f} MB found, at most {most / 1e6:.0f} MB expected; cut the recording")


def _kind_of_root(path: Path) -> Kind:
    """The format of an XML file; raises RecordError for other XML, and for XML with entities, which can grow without end."""
    require(path, "XML", "defusedxml")
    from defusedxml import DefusedXmlException, ElementTree

    with reading(path, "XML"), path.open("rb") as file:
        try:
            root = next(element.tag for _, element in ElementTree.iterparse(file, ("start",)))
        except DefusedXmlException as error:
            raise RecordError(f"{path}: XML with entities found, XML without them expected") from error
    name = root.rpartition("}")[2]
    if name not in _ROOTS:
        raise RecordError(f"{path}: XML of <{name[:40]}> found, {EXPECTED} expected")
    return _ROOTS[name]
