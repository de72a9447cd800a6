"""Flat tables stored as Avro, CSV, JSON or Parquet, compressed or not: what is read is what was written.

Columns are strings (valid UTF-8), booleans and integers; any of them may be null. What the formats need for that:

- CSV cannot tell null from the empty string, and a line break inside a field would make a file that cannot be split:
  null is written as nothing, the empty string ``%00``, and in strings ``%``, line feed and carriage return become
  ``%25``, ``%0A``, ``%0D``. Each file has a header; one that is not the schema's is an error, not a shift of columns.
- JSON leaves out what is null.
- Avro and Parquet need nothing. Only Parquet can leave columns unread.

Compression of Avro and Parquet is inside the file, block by block. CSV and JSON are compressed as whole files by
Hadoop's codecs. There zstd does not exist: Hadoop's ZStandardCodec is native code, and the appliance's Hadoop is jars
alone (:func:`codec_option` says so). A snappy file of text cannot be split: one task reads it whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, StringType, StructType

CODECS: Final = ("none", "snappy", "zstd")

_CODEC_OPTIONS: Final = {
    "avro": {"none": "uncompressed", "snappy": "snappy", "zstd": "zstandard"},
    "csv": {"none": "none", "snappy": "snappy"},
    "json": {"none": "none", "snappy": "snappy"},
    "parquet": {"none": "uncompressed", "snappy": "snappy", "zstd": "zstd"},
}
FORMATS: Final = tuple(_CODEC_OPTIONS)
PAIRS: Final = tuple((format_, codec) for format_, codecs in _CODEC_OPTIONS.items() for codec in codecs)
"""Every format with every codec that it can have."""

_Options = Mapping[str, bool | str]
_WRITING: Final[Mapping[str, _Options]] = {
    "csv": {"header": True, "escape": '"', "ignoreLeadingWhiteSpace": False, "ignoreTrailingWhiteSpace": False},
}
_READING: Final[Mapping[str, _Options]] = {
    "csv": {"header": True, "escape": '"', "enforceSchema": False, "mode": "FAILFAST"},
    "json": {"mode": "FAILFAST"},
}
_CSV_ESCAPES: Final = (("%", "%25"), ("\n", "%0A"), ("\r", "%0D"))
_CSV_EMPTY: Final = "%00"


class FormatError(ValueError):
    """A format or codec that is not known, or a pair of them that cannot exist; the text says which can."""


def codec_option(format_: str, codec: str) -> str:
    """Spark's name of the codec for this format. Raises FormatError."""
    codecs = _CODEC_OPTIONS.get(format_)
    if codecs is None:
        raise FormatError(f"{format_!r} is no format: use one of {', '.join(FORMATS)}")
    if codec not in CODECS:
        raise FormatError(f"{codec!r} is no codec: use one of {', '.join(CODECS)}")
    if codec not in codecs:
        raise FormatError(
            f"{format_} with {codec} does not exist here: text files are compressed by Hadoop's codecs, and its "
            f"{codec} is native code, while this Hadoop is jars alone: use {' or '.join(codecs)}, or avro or parquet"
        )
    return codecs[codec]


def write(frame: DataFrame, path: str, format_: str, codec: str) -> None:
    """Write a table into a new directory. Raises FormatError, and Spark's error where the directory is there."""
    option = codec_option(format_, codec)
    if format_ == "csv":
        frame = frame.select(*[_escaped(field.name, field.dataType) for field in frame.schema.fields])
    writer = frame.write.format(format_).option("compression", option)
    writer.options(**_WRITING.get(format_, {})).save(path)


def read(spark: SparkSession, path: str, schema: StructType, format_: str) -> DataFrame:
    """Read what :func:`write` wrote. A damaged row is an error when the frame is computed."""
    codec_option(format_, "none")
    reader = spark.read.format(format_).schema(schema).options(**_READING.get(format_, {}))
    frame = reader.load(path)
    if format_ == "csv":
        frame = frame.select(*[_unescaped(field.name, field.dataType) for field in schema.fields])
    return frame


def _escaped(name: str, kind: DataType) -> Column:
    column = F.col(name)
    if isinstance(kind, StringType):
        for plain, escape in _CSV_ESCAPES:
            column = F.replace(column, F.lit(plain), F.lit(escape))
        column = F.when(column == "", _CSV_EMPTY).otherwise(column)
    return column.alias(name)


def _unescaped(name: str, kind: DataType) -> Column:
    column = F.col(name)
    if isinstance(kind, StringType):
        for plain, escape in (("", _CSV_EMPTY), *reversed(_CSV_ESCAPES)):
            column = F.replace(column, F.lit(escape), F.lit(plain))
    return column.alias(name)
