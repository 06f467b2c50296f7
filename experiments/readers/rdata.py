"""Data frames from R's .rda files: numbers, factors and strings; whatever could be code is refused, nothing is run.

R's serialization in XDR form (magic RDX2 or RDX3), compressed by xz, gzip or bzip2: a pairlist of named values. A data
frame is a list of columns with the attribute `names`. Source: R Internals, section "Serialization Formats".
"""

import bz2
import gzip
import io
import lzma
import struct
from typing import Any, NamedTuple

import numpy as np

from experiments.engine.exits import Refused

_LARGEST = 2**28  # bytes of a file when decompressed


class Column(NamedTuple):
    """A vector, with its attributes: `dim`, or `levels` of a factor whose values count from 1; NA is nan or lowest."""

    values: Any
    attributes: dict[str, Any]


def read(content: bytes, where: str) -> dict[str, dict[str, Column]]:
    """Data frames by name, and in each its columns by name; Refused if it is damaged or holds anything else."""
    try:
        plain = _decompress(content)
        if plain[:5] not in (b"RDX2\n", b"RDX3\n") or plain[5:7] != b"X\n":
            raise ValueError("it is not in XDR form")
        reader = _Reader(plain, 7)
        version = reader.integers(3)[0]
        if version == 3:
            reader.take(reader.integers(1)[0])  # the name of the encoding
        frames = {}
        for name, value in reader.item().values.items():
            columns = dict(zip(value.attributes["names"].values, value.values, strict=True))
            frames[name] = columns
        return frames
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, RecursionError, struct.error) as error:
        raise Refused(f"{where} is no file of R data frames, or is damaged: {error}") from error


def _decompress(content: bytes) -> bytes:
    kinds = {b"\xfd7zXZ\0": lzma.LZMADecompressor, b"BZh": bz2.BZ2Decompressor}
    try:
        for magic, make in kinds.items():
            if content.startswith(magic):
                unpacking = make()
                plain = unpacking.decompress(content, _LARGEST + 1)
                if len(plain) <= _LARGEST and not unpacking.eof:
                    raise ValueError("it ends too early")
                break
        else:
            plain = gzip.GzipFile(fileobj=io.BytesIO(content)).read(_LARGEST + 1)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"it cannot be decompressed ({error})") from error
    if len(plain) > _LARGEST:
        raise ValueError("it is too large")
    return plain


class _Reader:
    """Items one after the other; symbols are remembered, because later ones refer to them by number."""

    def __init__(self, content: bytes, at: int) -> None:
        self._content, self._at, self._symbols = content, at, []

    def take(self, count: int) -> bytes:
        if count < 0 or self._at + count > len(self._content):
            raise ValueError("it ends too early")
        self._at += count
        return self._content[self._at - count : self._at]

    def integers(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f">{count}i", self.take(4 * count))

    def item(self) -> Column:
        """One value; a pairlist becomes a dict by its tags."""
        (flags,) = self.integers(1)
        kind = flags & 0xFF
        attributes = bool(flags & 0x200)
        if kind == 254:  # NULL
            return Column(None, {})
        if kind == 1:  # symbol: its name follows
            name = self.item()
            self._symbols.append(name)
            return name
        if kind == 255:  # a symbol met before
            return self._symbols[((flags >> 8) or self.integers(1)[0]) - 1]
        if kind == 2:
            return self._pairs(flags)
        if kind == 9:  # characters
            (length,) = self.integers(1)
            return Column(None if length == -1 else self.take(length).decode(), {})
        (count,) = self.integers(1)
        if kind in (10, 13):  # logical, integer
            values: Any = np.frombuffer(self.take(4 * count), ">i4").astype(np.int32)
        elif kind == 14:
            values = np.frombuffer(self.take(8 * count), ">f8").astype(np.float64)
        elif kind == 16:
            values = [self.item().values for _ in range(count)]
        elif kind == 19:
            values = [self.item() for _ in range(count)]
        else:
            raise ValueError(f"it holds a value of R's type {kind}, which is no data")
        return Column(values, self.item().values or {} if attributes else {})

    def _pairs(self, flags: int) -> Column:
        """A pairlist, cell by cell: tag, value, rest."""
        found: dict[str, Any] = {}
        while flags & 0xFF == 2:
            if flags & 0x200:
                self.item()
            name = self.item().values if flags & 0x400 else str(len(found))
            found[name] = self.item()
            (flags,) = self.integers(1)
        if flags & 0xFF != 254:
            raise ValueError("a list does not end as a list")
        return Column(found, {})
