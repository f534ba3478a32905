"""Which pictures of an H.264 stream others are predicted from, read off the headers of its slices.

FFmpeg skips pictures that nobody refers to, but decodes all others, although many are referred to
only by pictures that are skipped: with x264's preset veryfast, a third of them. `find_stand_ins`
finds those that no wanted picture depends on, however indirectly, and gives a small packet for
each, which a decoder takes in its place: a picture of the same number, order and marking that
copies another. The decoder's buffer of pictures then is in the state in which the whole stream
leaves it, and each wanted picture is predicted from the same pictures.

Sections named below are those of ITU-T H.264 (08/2021). Only what common encoders write is read:
one parameter set of each kind, progressive frames in 4:2:0, ordered by type 0, no long-term
pictures. Anything else ends in an empty answer.
"""

from collections.abc import Iterable
from typing import NamedTuple

_HEAD = 96  # A slice has its header within so many bytes.
_MOST_UNITS = 256  # A packet of more is not read here, because that may take long.
_MOST_PICTURES = 20_000  # More behind one keyframe are not read here; each takes a kilobyte.
_STAND_IN_PPS = 255  # Stand-ins bring a parameter set of this number with them.
_LONGEST = 1  # Where lists are longer, nearly every picture is referred to by the next.
P, B = 0, 1  # These are types of slices, and 2 is I.


class _Unread(Exception):
    """The stream has something that is not read here."""


def _require(is_so: bool) -> None:
    if not is_so:
        raise _Unread


class _Bits:
    """Reads the bits of a NAL unit behind its first byte; see 7.2 and 9.1."""

    def __init__(self, unit: bytes):
        data = bytes(unit[1:_HEAD]).replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def u(self, count: int) -> int:
        """An unsigned number of `count` bits."""
        self._left -= count
        _require(self._left >= 0)
        return self._value >> self._left & (1 << count) - 1

    def ue(self) -> int:
        """An Exp-Golomb number."""
        rest = self._value & (1 << self._left) - 1
        zeros = self._left - rest.bit_length()
        _require(rest > 0 and zeros < 32)
        return self.u(2 * zeros + 1) - 1

    def se(self) -> int:
        """A signed Exp-Golomb number."""
        value = self.ue()
        return (value + 1) // 2 if value % 2 else -(value // 2)


class _Parameters(NamedTuple):
    """What a sequence and a picture parameter set say, as far as it is needed."""

    sequence: int  # The number of the sequence parameter set.
    frame_bits: int
    order_bits: int
    max_refs: int
    num_blocks: int  # The macroblocks of a picture.
    picture: int  # The number of the picture parameter set.
    active: tuple[int, int]  # The two lists of references are so long where a slice does not say.
    weighted: tuple[bool, bool]  # Says whether slices of type P and B hold weights.
    length_size: int  # The length in front of each NAL unit has so many bytes.


class _Slice(NamedTuple):
    """What the header of a slice says."""

    is_idr: bool
    is_reference: bool
    first: int
    kind: int
    frame_num: int
    order: int
    active: tuple[int, int]
    changes: tuple[list[tuple[int, int]], list[tuple[int, int]]]
    forgets: list[int] | None  # Differences of picture numbers; with None the oldest makes room.


class _Picture(NamedTuple):
    """A picture: its timestamp, its header, and the timestamps of those it may refer to."""

    pts: int
    head: _Slice
    needs: frozenset[int]


class _Stored(NamedTuple):
    """A reference picture in the decoder's buffer."""

    pts: int
    frame_num: int
    order: int


def _read_parameters(header: bytes) -> _Parameters:
    """Reads the header of a stream as mp4 and Matroska hold it (ISO/IEC 14496-15, 5.3.3.1)."""
    _require(len(header) > 8 and header[0] == 1 and header[5] & 31 == 1)
    size = int.from_bytes(header[6:8], "big")
    sets, rest = header[8 : 8 + size], header[8 + size :]
    _require(len(rest) > 4 and rest[0] == 1)
    bits = _Bits(sets)  # 7.3.2.1.1
    profile, _ = bits.u(8), bits.u(16)
    sequence = bits.ue()
    if profile not in (66, 77, 88):
        _require(profile in (100, 110, 122) and bits.ue() == 1)
        bits.ue(), bits.ue(), bits.u(1)  # bit depths
        _require(not bits.u(1))  # matrices of its own
    frame_bits = bits.ue() + 4
    _require(bits.ue() == 0)  # pictures are ordered by type 0
    order_bits, max_refs = bits.ue() + 4, bits.ue()
    _require(not bits.u(1))  # no gaps between frame numbers
    _require(max(frame_bits, order_bits, max_refs) <= 16)
    num_blocks = (bits.ue() + 1) * (bits.ue() + 1)
    _require(bits.u(1) == 1)  # frames, no fields
    bits = _Bits(rest[3:])  # 7.3.2.2
    picture = bits.ue()
    _require(bits.ue() == sequence and picture != _STAND_IN_PPS)
    bits.u(1)
    _require(not bits.u(1) and bits.ue() == 0)  # no order of fields, one group of slices
    active = (bits.ue() + 1, bits.ue() + 1)
    weighted = (bits.u(1) == 1, bits.u(2) == 1)
    bits.se(), bits.se(), bits.se(), bits.u(2)
    _require(not bits.u(1))  # no redundant pictures
    length_size = (header[4] & 3) + 1
    numbers = (sequence, frame_bits, order_bits, max_refs, num_blocks, picture)
    return _Parameters(*numbers, active, weighted, length_size)


def _read_slice(unit: bytes, own: _Parameters) -> _Slice:
    """Reads the header of a slice, see 7.3.3."""
    bits, is_idr, is_reference = _Bits(unit), unit[0] & 31 == 5, bool(unit[0] & 96)
    first, kind = bits.ue(), bits.ue() % 5
    _require(kind < 3 and bits.ue() == own.picture)
    frame_num = bits.u(own.frame_bits)
    if is_idr:
        bits.ue()
    order, active = bits.u(own.order_bits), own.active
    if kind == B:
        bits.u(1)
    num_lists = (1, 2, 0)[kind]
    if num_lists and bits.u(1):
        active = (bits.ue() + 1, bits.ue() + 1 if kind == B else 0)
    changes = tuple(_read_changes(bits) if i < num_lists else [] for i in (0, 1))
    if kind != 2 and own.weighted[kind] and is_reference:
        _skip_weights(bits, active[:num_lists])
    forgets = None
    if is_reference and is_idr:
        bits.u(1)
        _require(not bits.u(1))  # no long-term picture
    elif is_reference and bits.u(1):
        forgets = []
        while operation := bits.ue():
            _require(operation == 1)
            forgets.append(bits.ue() + 1)
    return _Slice(is_idr, is_reference, first, kind, frame_num, order, active, changes, forgets)


def _read_changes(bits: _Bits) -> list[tuple[int, int]]:
    """Reads how a list of references is put in another order: signs and differences of numbers."""
    changes = []
    if bits.u(1):
        while (operation := bits.ue()) != 3:
            _require(operation < 2)
            changes.append((1 if operation else -1, bits.ue() + 1))
    return changes


def _skip_weights(bits: _Bits, lengths: tuple[int, ...]) -> None:
    """Reads past the weights of the references, see 7.3.3.2."""
    bits.ue(), bits.ue()
    for length in lengths:
        for _ in range(length):
            for num_values in (2, 4):  # luma, chroma
                if bits.u(1):
                    for _ in range(num_values):
                        bits.se()


class _Buffer:
    """The decoder's buffer of reference pictures, see 8.2.1, 8.2.4 and 8.2.5."""

    def __init__(self, own: _Parameters):
        self._own, self._stored = own, []
        self._order, self._frame_num = 0, 0  # They are the last reference picture's.

    def add(self, pts: int, slices: list[_Slice]) -> _Picture:
        """Takes the next picture in order of decoding, and tells what it may refer to."""
        head, span = slices[0], 1 << self._own.frame_bits
        same = {(s.is_idr, s.is_reference, s.frame_num, s.order) for s in slices}
        _require(len(same) == 1 and head.first == 0 and all(s.first for s in slices[1:]))
        if head.is_idr:
            self._stored, self._order, self._frame_num = [], 0, 0
        _require((head.frame_num - self._frame_num) % span == (0 if head.is_idr else 1))
        half = 1 << self._own.order_bits - 1
        order = self._order + (head.order - self._order + half) % (2 * half) - half
        needs = {old.pts for part in slices for old in self._refer(part, order)}
        if head.is_reference:
            self._mark(head)
            self._stored.append(_Stored(pts, head.frame_num, order))
            self._order, self._frame_num = order, head.frame_num
        return _Picture(pts, head, frozenset(needs))

    def _number(self, old: _Stored, head: _Slice) -> int:
        """The picture number of a stored picture, as seen from the present one."""
        return old.frame_num - (old.frame_num > head.frame_num) * (1 << self._own.frame_bits)

    def _refer(self, part: _Slice, order: int) -> list[_Stored]:
        """The pictures in the reference lists of a slice."""
        if part.kind == P:
            lists = [sorted(self._stored, key=lambda old: -self._number(old, part))]
        elif part.kind == B:
            past = sorted((old for old in self._stored if old.order < order), key=_negative_order)
            future = sorted((old for old in self._stored if old.order > order), key=_positive_order)
            lists = [past + future, future + past]
            if lists[0] == lists[1] and len(lists[1]) > 1:
                lists[1][:2] = lists[1][1::-1]
        else:
            lists = []
        used = []
        for own, active, changes in zip(lists, part.active, part.changes, strict=False):
            del own[active:]
            self._change(own, part, changes)
            del own[active:]
            _require(len(own) == active)
            used += own
        return used

    def _change(self, own: list[_Stored], part: _Slice, changes: list[tuple[int, int]]) -> None:
        span, number = 1 << self._own.frame_bits, part.frame_num
        for place, (sign, difference) in enumerate(changes):
            number = (number + sign * difference) % span
            target = number - (number > part.frame_num) * span
            found = [old for old in self._stored if self._number(old, part) == target]
            _require(len(found) == 1)
            own[:] = [*own[:place], *found, *(old for old in own[place:] if old not in found)]

    def _mark(self, head: _Slice) -> None:
        """Makes room for the present picture."""
        if head.forgets is None:
            while len(self._stored) >= max(self._own.max_refs, 1):
                self._stored.remove(min(self._stored, key=lambda old: self._number(old, head)))
            return
        for difference in head.forgets:
            target = head.frame_num - difference
            found = [old for old in self._stored if self._number(old, head) == target]
            _require(len(found) == 1)
            self._stored.remove(found[0])
        _require(len(self._stored) < max(self._own.max_refs, 1))


def _negative_order(old: _Stored) -> int:
    return -old.order


def _positive_order(old: _Stored) -> int:
    return old.order


def _split(packet: bytes, length_size: int) -> Iterable[bytes]:
    """The NAL units of a packet, only the first bytes of each."""
    at = num_units = 0
    while at < len(packet):
        start, num_units = at + length_size, num_units + 1
        _require(num_units <= _MOST_UNITS)
        at = start + int.from_bytes(packet[at:start], "big")
        _require(start < at <= len(packet))
        yield packet[start : min(at, start + _HEAD)]


def _is_slice(unit: bytes) -> bool:
    """Whether a NAL unit is a slice. What changes how slices are read is refused."""
    kind = unit[0] & 31
    _require(kind in (1, 5, 6, 9, 12))  # slices, messages, delimiters, filling
    return kind in (1, 5)


def find_stand_ins(
    header: bytes, packets: Iterable[tuple[int, bytes]], wanted: set[int]
) -> dict[int, bytes]:
    """Finds the pictures that others refer to, but none of the wanted ones, and a packet for each
    that can be decoded in its place.

    header: what the container says of the stream. packets: (timestamp, bytes) in order of decoding
    from a keyframe to the last wanted picture. wanted: timestamps. Returns {} where the stream has
    something that is not read here, or hardly anything would be won.
    """
    try:
        own = _read_parameters(header)
        _require(own.active[0] <= _LONGEST)
        buffer, pictures = _Buffer(own), {}
        for pts, packet in packets:
            units = [unit for unit in _split(packet, own.length_size) if _is_slice(unit)]
            _require(bool(units) and pts not in pictures and len(pictures) < _MOST_PICTURES)
            _require(bool(pictures) or units[0][0] & 31 == 5)
            if pts in wanted or any(unit[0] & 96 for unit in units):  # the rest is skipped anyway
                pictures[pts] = buffer.add(pts, [_read_slice(unit, own) for unit in units])
        needed, asked = set(), [pts for pts in wanted if pts in pictures]
        while asked:
            pts = asked.pop()
            if pts not in needed:
                needed.add(pts)
                asked += pictures[pts].needs
    except _Unread:
        return {}
    return {
        pts: _write_stand_in(picture.head, own)
        for pts, picture in pictures.items()
        if pts not in needed and picture.head.is_reference
        if not picture.head.is_idr
    }


def _ue(value: int) -> str:
    """The bits of an Exp-Golomb number."""
    digits = f"{value + 1:b}"
    return "0" * (len(digits) - 1) + digits


def _unit(head: int, bits: str, length_size: int) -> bytes:
    """A NAL unit behind its length: the bits end in a 1, see 7.3.2.11, and bytes that would look
    like the begin of a unit are kept apart, see 7.4.1."""
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    data = bytearray([head])
    for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
        if data[-2:] == b"\0\0" and byte < 4:
            data.append(3)
        data.append(byte)
    return len(data).to_bytes(length_size, "big") + bytes(data)


def _write_stand_in(head: _Slice, own: _Parameters) -> bytes:
    """Writes a picture of skipped macroblocks, and its parameter set without arithmetic coding, by
    which all of them are one number."""
    lists = _ue(0) + _ue(0) + "0" + "00"  # one picture in a list, no weights
    parameters = _ue(_STAND_IN_PPS) + _ue(own.sequence) + "00" + _ue(0) + lists
    parameters += _ue(0) * 3 + "100"  # se(0) is ue(0); deblocking is told by each slice
    forgets = "0" if head.forgets is None else "1"
    for difference in head.forgets or ():
        forgets += _ue(1) + _ue(difference - 1)
    forgets += "" if head.forgets is None else _ue(0)
    slice_ = _ue(0) + _ue(P) + _ue(_STAND_IN_PPS) + f"{head.frame_num:0{own.frame_bits}b}"
    slice_ += f"{head.order:0{own.order_bits}b}" + "00" + forgets  # lists as they are
    slice_ += _ue(0) + _ue(1) + _ue(own.num_blocks)  # quantiser, no deblocking, all are skipped
    size = own.length_size
    return _unit(0x68, parameters, size) + _unit(0x61, slice_, size)
