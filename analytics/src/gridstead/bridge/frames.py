"""STOMP 1.2 frames (https://stomp.github.io/stomp-specification-1.2.html), read from and written to bytes; no I/O.

Only the framing is strict (content-length, terminating NUL): a strange header must not stop the queue behind it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_ESCAPE = re.compile(r"\\([rnc\\])")
_UNESCAPED = {"r": "\r", "n": "\n", "c": ":", "\\": "\\"}
_TO_ESCAPE = re.compile(r"[\r\n:\\]")
_ESCAPED = {"\r": "\\r", "\n": "\\n", ":": "\\c", "\\": "\\\\"}
_UNESCAPED_COMMANDS = ("CONNECT", "CONNECTED")


class FrameError(Exception):
    """The bytes are not STOMP frames; nothing after them can be read."""


class Frame(NamedTuple):
    """One frame: command, headers (of a repeated header the first counts) and body."""

    command: str
    headers: dict[str, str]
    body: bytes


def encode(command: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """Return the bytes of a frame; a content-length is added where there is a body."""
    if command in _UNESCAPED_COMMANDS:
        lines = [f"{name}:{value}" for name, value in headers.items()]
    else:
        lines = [f"{_escape(name)}:{_escape(value)}" for name, value in headers.items()]
    if body:
        lines.append(f"content-length:{len(body)}")
    return "\n".join([command, *lines, "", ""]).encode() + body + b"\0"


def _escape(text: str) -> str:
    return _TO_ESCAPE.sub(lambda found: _ESCAPED[found[0]], text)


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: _UNESCAPED[found[1]], text)


class FrameReader:
    """Gathers received bytes, in pieces of any size, and gives the complete frames in them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        if self._position:
            del self._buffer[: self._position]
            self._position = 0
        self._buffer += data

    def next(self) -> Frame | None:
        """Return the next complete frame, None until more bytes come. Heart-beats (bare newlines) are skipped.

        Raises FrameError where a content-length is no number or a body of that length is not followed by NUL.
        """
        buffer, start = self._buffer, self._position
        while start < len(buffer) and buffer[start] in b"\r\n":
            start += 1
        self._position = start
        head_end, body_start = self._head_end(start)
        if head_end < 0:
            return None
        text = buffer[start:head_end].decode("utf-8", "replace")
        command, *lines = text.split("\n")
        command = command.rstrip("\r")
        unescape = "\\" in text and command not in _UNESCAPED_COMMANDS
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.rstrip("\r").partition(":")
            if unescape:
                name, value = _unescape(name), _unescape(value)
            headers.setdefault(name, value)
        length = headers.get("content-length")
        if length is None:
            body_end = buffer.find(b"\0", body_start)
            if body_end < 0:
                return None
        else:
            if not (length.isascii() and length.isdigit()):
                raise FrameError(f"{command}: content-length is {length!r}, not a number")
            body_end = body_start + int(length)
            if body_end >= len(buffer):
                return None
            if buffer[body_end] != 0:
                raise FrameError(f"{command}: its body of {length} bytes does not end with NUL")
        self._position = body_end + 1
        return Frame(command, headers, bytes(buffer[body_start:body_end]))

    def _head_end(self, start: int) -> tuple[int, int]:
        """Where the headers end and the body begins; -1 while the empty line has not come."""
        lf = self._buffer.find(b"\n\n", start)
        crlf = self._buffer.find(b"\n\r\n", start, lf if lf >= 0 else len(self._buffer))
        if crlf >= 0:
            return crlf, crlf + 3
        return lf, lf + 2
