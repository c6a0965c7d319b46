"""Reading tables row by row, so that a bad row does not affect others."""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ecgbyte_jax.errors import CorpusError

if TYPE_CHECKING:
    from _csv import Reader

_SPACE = re.compile(r"[ \t\r\n]*")
_ITEM_ENDS = tuple(" \t\r\n,]")


def read_csv(path: Path, *columns: set[str]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yields (line, row) of a CSV file in UTF-8, or (line, what is wrong with the row).

    columns: sets of names, of one of which the file must have all. Raises CorpusError if a column is missing or duplicate, a
    quote is not closed, or the file cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.reader(file, strict=True)
            names = next(rows, [])
            missing = min((sorted(needed - set(names)) for needed in columns), key=len)
            duplicates = _duplicates(names)
            if missing:
                raise CorpusError(f"{path}: columns {missing} are missing; found {names}")
            if duplicates:
                raise CorpusError(f"{path}: columns {duplicates} are there twice; one of each expected")
            yield from _rows(path, rows, names)
    except (UnicodeError, csv.Error) as error:
        raise CorpusError(f"{path}: not readable as CSV: {error}") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error


def _rows(path: Path, rows: "Reader", names: list[str]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Continues in the line after an error, so that a single bad line does not affect other rows."""
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


def _duplicates(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _fault(row: list[str], width: int) -> str:
    """What is wrong with a row; "" if nothing is."""
    if len(row) != width:
        return f"{len(row)} fields found, {width} expected"
    return "" if _is_utf8("".join(row)) else "the row is not UTF-8"


def read_jsonl(path: Path) -> Iterator[tuple[int, dict | str]]:
    """Yields (line, object) of a file with one JSON object per line, or (line, what is wrong with it); skips empty lines.

    Raises CorpusError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _object(line)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error


def _object(line: bytes) -> dict | str:
    try:
        item = json.loads(line.decode("utf-8"), parse_int=parse_integer, object_pairs_hook=_fields)
    except UnicodeDecodeError:
        return "the line is not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"not readable as JSON: {error}"
    return item if isinstance(item, dict) else "a JSON object expected"


def _fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"fields {_duplicates([name for name, _ in pairs])} are there twice")
    return fields


def parse_integer(digits: str) -> int | float:
    """An integer of a JSON file; infinite from 100 digits on, since Python refuses to parse thousands of digits."""
    return int(digits) if len(digits) < 100 else math.copysign(math.inf, -1 if digits.startswith("-") else 1)


def read_json_list(path: Path, chunk: int = 1 << 20) -> Iterator[object]:
    """Yields the items of a JSON file that is one list, in bounded memory.

    Bytes that are not UTF-8 become lone surrogates, which `Example` rejects, so that they affect only one item. Raises
    CorpusError, naming the place, if the file is not JSON, not a list, or truncated.
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
        raise CorpusError(f"{path}: a JSON list expected")
    text.place += 1
    done = 0
    while done or text.peek() != "]":
        try:
            item = text.take_item()
        except ValueError as error:
            raise CorpusError(f"{path}: damaged or truncated after {done} items: {error}") from error
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
    """A JSON text from the current place on, read from the file as needed."""

    def __init__(self, file: TextIO, chunk: int):
        self.file, self.chunk, self.text, self.place = file, chunk, "", 0
        self.decoder = json.JSONDecoder(parse_int=parse_integer)

    def peek(self) -> str:
        """Returns the next character that is not whitespace; "" at the end."""
        while True:
            space = _SPACE.match(self.text, self.place)
            self.place = space.end() if space else self.place
            if self.place < len(self.text) or not self._read_more():
                return self.text[self.place : self.place + 1]

    def take_item(self) -> object:
        """Returns the next item and moves past it; raises ValueError if there is none."""
        self.peek()
        while True:
            try:
                item, end = self.decoder.raw_decode(self.text, self.place)
                fault = ValueError("an item is not followed by a comma or the list's end")
            except ValueError as error:
                end, fault = len(self.text), error
            if self.text.startswith(_ITEM_ENDS, end):  # a number at the end of the piece may continue in the next
                self.place = end
                return item
            if not self._read_more():
                raise fault

    def _read_more(self) -> bool:
        rest = self.text[self.place :]
        piece = self.file.read(max(self.chunk, len(rest)))  # doubles, so that a huge item is not parsed many times
        self.text, self.place = rest + piece, 0
        return bool(piece)


def _is_utf8(text: str) -> bool:
    """Whether the text contains no bytes that `surrogateescape` had to replace."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
