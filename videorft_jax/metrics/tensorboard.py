"""TensorBoard event files with scalars, written without TensorFlow.

The three message types have a dozen fields together, which are encoded here rather than bought with
a dependency; the tests read them with TensorBoard itself. A file starts with a session record, on
which TensorBoard forgets what an earlier, killed run wrote from that step on.

A record holds a length, its masked CRC-32C, the data and its masked CRC-32C, which is TensorFlow's
TFRecord format.
"""

import os
import pathlib
import socket
import struct
import time

from videorft_jax.data.naming import naming


def _make_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # Castagnoli, reflected
        table.append(value)
    return table


_TABLE = _make_table()
_START = 1  # SessionLog.START


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _masked(data):
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number, content):
    """A protobuf field that has a length: a string or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _event(step, *fields):
    """Event: wall_time = 1, step = 2, then the given fields."""
    now = struct.pack("<d", time.time())
    return b"\x09" + now + b"\x10" + _varint(step) + b"".join(fields)


class EventWriter:
    """Appends scalars to a new event file in `folder`; `start_step` is the first to be written."""

    def __init__(self, folder: pathlib.Path, start_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._write(_event(0, _field(3, b"brain.Event:2")))  # file_version
        self._write(_event(start_step, _field(7, b"\x08" + _varint(_START))))  # session_log.status

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """One event: Summary = 5, of values = 1 with tag = 1 and simple_value = 2 (float32)."""
        values = (
            _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", _single(value)))
            for tag, value in scalars.items()
        )
        with naming(self._file.name):
            self._write(_event(step, _field(5, b"".join(values))))
            self._file.flush()

    def _write(self, data):
        length = struct.pack("<Q", len(data))
        self._file.write(length + _masked(length) + data + _masked(data))

    def close(self) -> None:
        with naming(self._file.name):
            self._file.close()


def _single(value):
    """A value beyond the range of float32 as infinity; struct.pack would raise instead."""
    return float("inf") * (1 if value > 0 else -1) if abs(value) > 3.4028234e38 else value
