"""Reading tables row by row, so that one bad row costs no other."""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ecgbyte_jax.errors import CorpusError

_SPACE = re.compile(r"[ \t\r\n]*")
_ENDS_AN_ITEM = tuple(" \t\r\n,]")


def read_csv(path: Path, columns: set[str]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """(line, row) of a CSV file in UTF-8, or (line, what is wrong with the row).

    Raises CorpusError where a column is missing or doubled, or a quote is not closed, or the file cannot be read at all.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.reader(file, strict=True)
            names = next(rows, [])
            missing, twice = sorted(columns - set(names)), _doubled(names)
            if missing:
                raise CorpusError(f"{path}: columns {missing} are missing; found {names}")
            if twice:
                raise CorpusError(f"{path}: columns {twice} are there twice; one of each expected")
            yield from _rows(path, rows, names)
    except (UnicodeError, csv.Error) as error:
        raise CorpusError(f"{path}: not readable as CSV: {error}") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error


def _rows(path: Path, rows: "csv.Reader", names: list[str]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """The reader goes on in the line after an error, so that one of a single line costs no other row."""
    while True:
        first = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if rows.line_num > first:
                raise CorpusError(f"{path}: lines {first} to {rows.line_num}: {error}; is a quote not closed?") from error
            yield first, f"not readable as CSV: {error}"
        else:
            if row:
                yield rows.line_num, _fault(row, len(names)) or dict(zip(names, row))


def _doubled(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _fault(row: list[str], width: int) -> str:
    """What is wrong with a row; "" where nothing is."""
    if len(row) != width:
        return f"{len(row)} fields found, {width} wanted"
    return "" if _is_utf8("".join(row)) else "the row is not UTF-8"


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
        found = json.loads(line.decode("utf-8"), parse_int=parse_integer, object_pairs_hook=_fields)
    except UnicodeDecodeError:
        return "the line is not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"not readable as JSON: {error}"
    return found if isinstance(found, dict) else "a JSON object wanted"


def _fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"fields {_doubled([name for name, _ in pairs])} are there twice")
    return found


def parse_integer(digits: str) -> int | float:
    """A JSON file's whole number; infinite beyond any type's range, since Python refuses to read thousands of digits."""
    return int(digits) if len(digits) < 100 else math.copysign(math.inf, -1 if digits.startswith("-") else 1)


def read_json_list(path: Path, chunk: int = 1 << 20) -> Iterator[object]:
    """The items of a JSON file that is one list, read piece by piece: the file may be larger than the memory.

    Bytes that are not UTF-8 come as lone surrogates, which examples refuse, so that they cost one item alone. Raises
    CorpusError, naming the place, where the file is not JSON, no list, or cut short.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from _items(path, _Pieces(file, chunk))
    except RecursionError as error:
        raise CorpusError(f"{path}: not readable as JSON: {error}") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error


def _items(path: Path, text: "_Pieces") -> Iterator[object]:
    if text.peek() != "[":
        raise CorpusError(f"{path}: a JSON list wanted")
    text.place += 1
    done = 0
    while done or text.peek() != "]":
        try:
            item = text.take_item()
        except ValueError as error:
            raise CorpusError(f"{path}: broken or cut short behind {done} items: {error}") from error
        yield item
        done += 1
        if text.peek() == "]":
            break
        if text.peek() != ",":
            raise CorpusError(
                f"{path}: a comma or the list's end expected after {done} items, {text.peek() or 'nothing'!r} found"
            )
        text.place += 1
    text.place += 1
    if text.peek():
        raise CorpusError(f"{path}: nothing expected after the list's end, {text.peek()!r} found")


class _Pieces:
    """A JSON text from a place on, of which more is read where it is needed."""

    def __init__(self, file: TextIO, chunk: int):
        self.file, self.chunk, self.text, self.place = file, chunk, "", 0
        self.decoder = json.JSONDecoder(parse_int=parse_integer)

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            self.place = _SPACE.match(self.text, self.place).end()
            if self.place < len(self.text) or not self._read_more():
                return self.text[self.place : self.place + 1]

    def take_item(self) -> object:
        """The item that comes next; raises ValueError where there is none."""
        self.peek()
        while True:
            try:
                item, end = self.decoder.raw_decode(self.text, self.place)
                fault = ValueError("an item is not followed by a comma or the list's end")
            except ValueError as error:
                end, fault = len(self.text), error
            if self.text.startswith(_ENDS_AN_ITEM, end):  # a number at the end of the piece may go on in the next one
                self.place = end
                return item
            if not self._read_more():
                raise fault

    def _read_more(self) -> bool:
        rest = self.text[self.place :]
        more = self.file.read(max(self.chunk, len(rest)))  # doubles, so that a huge item is not parsed many times
        self.text, self.place = rest + more, 0
        return bool(more)


def _is_utf8(text: str) -> bool:
    """Whether the text holds no bytes that `surrogateescape` had to carry."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
