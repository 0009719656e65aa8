"""Reads common file formats into entries: JSON lines, a JSON list, a table or parquet, each also with .gz.

The suffix of a file determines its format; without a known suffix its first bytes do. `mosaic.workloads.rows` reads the
meaning of an entry.
"""

import codecs
import csv
import gzip
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from mosaic.workloads.json_text import json_object, parse_json

JSON_SUFFIXES, TABLE_SUFFIXES = (".jsonl", ".ndjson", ".json"), (".csv", ".tsv")
PARQUET_SUFFIX, TEXT_SUFFIX = ".parquet", ".txt"
DELIMITERS = ",;\t|"
NO_DELIMITER = "\x1f"
"""The unit separator: for a table of one column, whose texts may have commas."""
_SAMPLE_ROWS = 50
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""Byte order marks. NOTE: that of UTF-32 begins with that of UTF-16."""
_SIGNATURES = {b"PK\x03\x04": "an Excel workbook or a zip archive", b"\xd0\xcf\x11\xe0": "an old Excel workbook"}
_BYTES_OF_NO_TEXT = re.compile("[\ud800-\udfff]")


class Entry(NamedTuple):
    """A line or row of its file, unchanged."""

    at: str
    """File and line, for messages."""
    number: int
    """Of the line; of the row in a list or parquet, which have no lines."""
    values: dict[str, Any]
    problem: str | None = None
    """Why it cannot be read, with its position; None: it can."""


class SourceFile(NamedTuple):
    """The content of a file."""

    entries: Iterator[Entry]
    notes: tuple[str, ...]
    """Guesses about it."""


def open_file(path: str | Path) -> SourceFile:
    """Read a file; entries that cannot be read come with their problem.

    Raises
    ------
    ValueError, TypeError
        Naming the file, the rule and what to do, if the file as a whole cannot be read.
    """
    name = Path(str(path).removesuffix(".gz"))
    suffix, data = name.suffix.lower(), _read_bytes(path)
    if data.startswith(b"PAR1") or suffix == PARQUET_SUFFIX:
        return SourceFile(_parquet_entries(data, path), ())
    text, notes = _decode(data, path)
    first_line = text.strip().partition("\n")[0].rstrip()
    if suffix in JSON_SUFFIXES or (suffix not in TABLE_SUFFIXES and first_line.startswith(("{", "["))):
        is_whole = first_line.startswith("[") or (suffix == ".json" and not first_line.endswith("}"))
        return SourceFile((_list_entries if is_whole else _line_entries)(text, path), notes)
    if suffix == TEXT_SUFFIX and "\t" not in first_line:
        return SourceFile(_text_entries(text, path), notes)
    return SourceFile(_table_entries(text, path), notes)


def read_objects(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read the entries of a file by their positions; one that cannot be read is an error.

    Raises
    ------
    ValueError, TypeError
        Naming the file, the line, the rule and what to do.
    """
    found = {}
    for entry in open_file(path).entries:
        if entry.problem is not None:
            raise ValueError(entry.problem)
        found[entry.at] = entry.values
    return found


def _read_bytes(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: must be a readable file ({error.strerror})") from error
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: must be a whole gzip file ({error}); pack it again") from error
    what = next((what for signature, what in _SIGNATURES.items() if data.startswith(signature)), None)
    if what is not None:
        raise ValueError(f"{path}: must be JSON lines, a JSON list, CSV or parquet, got {what}; save it as CSV (UTF-8)")
    return data


def _decode(data: bytes, path: str | Path) -> tuple[str, tuple[str, ...]]:
    """Find a text's encoding: its byte order mark, UTF-8, or else the one of Windows in western Europe.

    NOTE: statistics do worse on files as short as these: charset-normalizer took two lines of French for cp1250, and
    two of German for Shift-JIS.
    """
    codec = next((codec for mark, codec in _MARKS if data.startswith(mark)), None)
    try:
        text = data.decode(codec or "utf-8")
    except UnicodeDecodeError as error:
        if codec is not None:
            raise ValueError(f"{path}: must be {codec}, as its byte order mark says ({error})") from error
        return _decode_guessed(data, path)
    _require_text("\0" not in text, path)
    return text, ()


def _decode_guessed(data: bytes, path: str | Path) -> tuple[str, tuple[str, ...]]:
    _require_text(b"\0" not in data, path)
    text = data.decode("utf-8", errors="surrogateescape")
    num_bad = len(_BYTES_OF_NO_TEXT.findall(text))
    if num_bad < sum(character > "\x7f" for character in text) - num_bad:
        return text, ()  # UTF-8 but for some bytes: the lines that have them are refused
    try:
        text, codec = data.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        text, codec = data.decode("latin-1"), "latin-1"
    return text, (f"{Path(path).name}: not UTF-8, read as {codec} (guessed; save it as UTF-8 if letters are wrong)",)


def _require_text(is_text: bool, path: str | Path) -> None:
    if not is_text:
        raise ValueError(f"{path}: must be text or parquet, got bytes of neither; save it as CSV (UTF-8) or JSON lines")


def _text_entries(text: str, path: str | Path) -> Iterator[Entry]:
    for number, line in enumerate(text.rstrip("\n").split("\n"), start=1):
        yield Entry(f"{path}, line {number}", number, {"question": line.strip()})


def _line_entries(text: str, path: str | Path) -> Iterator[Entry]:
    # NOTE: split at newlines only; str.splitlines would also split at separators inside a string.
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        at = f"{path}, line {number}"
        if _BYTES_OF_NO_TEXT.search(line):
            yield Entry(at, number, {}, f"{at}: must be UTF-8, got {line[:60]!r}")
        elif line.strip():
            yield _json_entry(line, at, number, is_last=number == len(lines))


def _json_entry(line: str, at: str, number: int, *, is_last: bool) -> Entry:
    try:
        value = parse_json(line, at)
    except ValueError as error:
        if is_last:
            raise ValueError(f"{error}; the line has no end: is the file still being written?") from error
        return Entry(at, number, {}, str(error))
    return _object_entry(value, at, number)


def _object_entry(value: object, at: str, number: int) -> Entry:
    try:
        return Entry(at, number, json_object(value, at))
    except TypeError as error:
        return Entry(at, number, {}, str(error))


def _list_entries(text: str, path: str | Path) -> Iterator[Entry]:
    values = parse_json(text, str(path))
    if not isinstance(values, list):
        raise TypeError(f"{path}: must be a list of questions or have an object a line, got {type(values).__name__}")
    for number, value in enumerate(values, start=1):
        yield _object_entry(value, f"{path}, row {number}", number)


def _parquet_entries(data: bytes, path: str | Path) -> Iterator[Entry]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: must be a whole parquet file ({error})") from error
    for number, values in enumerate(table.to_pylist(), start=1):
        yield Entry(f"{path}, row {number}", number, values)


def _table_entries(text: str, path: str | Path) -> Iterator[Entry]:
    """Read a table with a header; a record that does not fit the header is reported as a bad line."""
    csv.field_size_limit(sys.maxsize)  # a question may be a whole document
    records = csv.reader(StringIO(text, newline=""), delimiter=delimiter_of(text), strict=True)
    header: list[str] | None = None
    while True:
        number = records.line_num + 1
        at = f"{path}, line {number}"
        try:
            record = next(records, None)
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise ValueError(f"{at}: must be CSV, got a quote that is opened and never closed") from error
            yield Entry(at, number, {}, f"{at}: must be CSV ({error})")
            continue
        if record is None:
            return
        if header is None:
            if any(map(str.strip, record)):
                header = [name.strip() for name in record]
            continue
        yield _table_entry(header, record, at, number)


def _table_entry(header: Sequence[str], record: list[str], at: str, number: int) -> Entry:
    if not any(map(str.strip, record)):
        return Entry(at, number, {})
    num_columns = len(header)
    if len(record) < num_columns or any(record[num_columns:]):
        return Entry(at, number, {}, f"{at}: must have {num_columns} columns, like the header, got {len(record)}")
    if damaged := next((cell for cell in record if _BYTES_OF_NO_TEXT.search(cell)), None):
        return Entry(at, number, {}, f"{at}: must be UTF-8, got {damaged[:60]!r}")
    return Entry(at, number, {name: cell for name, cell in zip(header, record, strict=False) if name})


def delimiter_of(text: str) -> str:
    r"""Find the separator of columns: most of the first records must match the header, with the most columns.

    NOTE: csv.Sniffer fails on a single column, and counts the punctuation inside of questions.

    Examples
    --------
    >>> delimiter_of("question;answer\nRed, blue or green?;red\n")
    ';'
    """

    def fit(delimiter: str) -> tuple[float, int]:
        try:
            records = csv.reader(StringIO(text, newline=""), delimiter=delimiter)
            sample = [record for record in islice(records, _SAMPLE_ROWS) if record]
        except csv.Error:
            return 0.0, 0
        num_columns = len(sample[0]) if sample else 0
        same = sum(len(record) == num_columns for record in sample)
        return (same / len(sample), num_columns) if num_columns > 1 else (0.0, 0)

    best = max(DELIMITERS, key=fit)
    return best if fit(best)[1] > 1 else NO_DELIMITER
