"""Reading tables row by row, so that one bad row costs no other."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from ecgbyte_jax.errors import CorpusError

_BETWEEN_ITEMS = re.compile(r"[\s,]*")
_ENDS_AN_ITEM = tuple(" \t\r\n,]")


def read_csv(path: Path, columns: set[str]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """(line, row) of a CSV file in UTF-8, or (line, what is wrong with the row).

    Raises CorpusError where a column is missing or the file cannot be read as a table at all.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            missing = sorted(columns - set(rows.fieldnames or ()))
            if missing:
                raise CorpusError(f"{path}: columns {missing} are missing; found {list(rows.fieldnames or ())}")
            width = len(rows.fieldnames)
            for row in rows:
                yield rows.line_num, _fault(row, width) or row
    except (UnicodeError, csv.Error) as error:
        raise CorpusError(f"{path}: not readable as CSV: {error}") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error


def _fault(row: dict, width: int) -> str:
    """What is wrong with a row; "" where nothing is."""
    found = sum(value is not None for name, value in row.items() if name is not None) + len(row.get(None, ()))
    if found != width:
        return f"{found} fields found, {width} wanted"
    return "" if _is_utf8("".join(row.values())) else "the row is not UTF-8"


def read_jsonl(path: Path) -> Iterator[tuple[int, dict | str]]:
    """(line, object) of a file with one JSON object a line, or (line, what is wrong with it); empty lines do not count."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _object(line)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error


def _object(line: bytes) -> dict | str:
    try:
        found = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "the line is not UTF-8"
    except (json.JSONDecodeError, RecursionError) as error:
        return f"not readable as JSON: {error}"
    return found if isinstance(found, dict) else "a JSON object wanted"


def read_json_list(path: Path, chunk: int = 1 << 20) -> Iterator[object]:
    """The items of a JSON file that is one list, read piece by piece: the file may be larger than the memory.

    Bytes that are not UTF-8 come as lone surrogates, which examples refuse, so that they cost one item alone. Raises
    CorpusError, naming the place, where the file is not JSON, no list, or cut short.
    """
    decoder = json.JSONDecoder()
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            text, place, done = file.read(chunk).lstrip(), 1, 0
            if not text.startswith("["):
                raise CorpusError(f"{path}: a JSON list wanted")
            while True:
                place = _BETWEEN_ITEMS.match(text, place).end()
                if text.startswith("]", place):
                    return
                try:
                    item, end = decoder.raw_decode(text, place)
                    whole = text[end : end + 1] in _ENDS_AN_ITEM  # a number at the end of the piece may go on in the next one
                except json.JSONDecodeError as error:
                    item, whole = error, False
                if whole:
                    yield item
                    place, done = end, done + 1
                    continue
                more = file.read(max(chunk, len(text) - place))  # doubles, so that a huge item is not parsed many times
                if not more:
                    raise CorpusError(f"{path}: broken or cut short behind {done} items: {item}")
                text, place = text[place:] + more, 0
    except RecursionError as error:
        raise CorpusError(f"{path}: not readable as JSON: {error}") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error


def _is_utf8(text: str) -> bool:
    """Whether the text holds no bytes that `surrogateescape` had to carry."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
