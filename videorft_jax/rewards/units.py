"""Units of measurement: their names, and how one converts to another."""

# Dimension -> (names of one unit, its size in the first unit of the dimension).
_DIMENSIONS = {
    "length": (
        (("m", "meter", "metre", "米"), 1.0),
        (("km", "kilometer", "kilometre", "公里"), 1000.0),
        (("cm", "centimeter", "centimetre", "厘米"), 0.01),
        (("mm", "millimeter", "millimetre", "毫米"), 0.001),
        (("ft", "foot", "feet"), 0.3048),
        (("in", "inch", "inche"), 0.0254),
        (("yd", "yard"), 0.9144),
        (("mile", "mi"), 1609.344),
    ),
    "time": (
        (("s", "sec", "second", "秒"), 1.0),
        (("ms", "millisecond"), 0.001),
        (("min", "minute", "分钟"), 60.0),
        (("h", "hr", "hour", "小时"), 3600.0),
        (("day", "天"), 86400.0),
        (("week",), 604800.0),
    ),
    "mass": (
        (("kg", "kilogram", "kilo", "公斤"), 1.0),
        (("g", "gram", "克"), 0.001),
        (("mg", "milligram"), 1e-6),
        (("lb", "pound"), 0.45359237),
        (("ton", "tonne"), 1000.0),
    ),
    "area": (
        (("m^2", "square meter", "square metre", "sq m", "平方米"), 1.0),
        (("cm^2", "square centimeter", "square centimetre"), 1e-4),
        (("km^2", "square kilometer", "square kilometre"), 1e6),
        (("square foot", "square feet", "ft^2", "sq ft"), 0.09290304),
    ),
    "volume": (
        (("l", "liter", "litre"), 1.0),
        (("ml", "milliliter", "millilitre"), 0.001),
        (("m^3", "cubic meter", "cubic metre"), 1000.0),
        (("cm^3", "cubic centimeter", "cubic centimetre", "cc"), 0.001),
    ),
    "speed": (
        (("m/s", "meters per second", "meter per second"), 1.0),
        (("km/h", "kph", "kilometer per hour", "kilometers per hour"), 1 / 3.6),
        (("mph", "mile per hour", "miles per hour"), 0.44704),
    ),
    "angle": ((("°", "degree", "deg"), 1.0), (("rad", "radian"), 57.29577951308232)),
    "dollars": ((("$", "dollar", "usd", "us dollar"), 1.0),),
    "euros": ((("€", "euro", "eur"), 1.0),),
    "pounds sterling": ((("£", "gbp"), 1.0),),
    "per cent": ((("%", "percent", "per cent"), 1.0),),
}
_UNITS = {
    name: (dimension, size)
    for dimension, units in _DIMENSIONS.items()
    for names, size in units
    for name in names
}


def convert(value: float, unit: str, wanted: str) -> float | None:
    """`value` of one unit in another; None where they do not measure the same.

    Units that nobody listed, such as "apple", convert to themselves alone. A unit that is not
    written, "", may be any.
    """
    if unit == wanted or not unit or not wanted:
        return value
    known, target = _UNITS.get(unit), _UNITS.get(wanted)
    if known is None or target is None or known[0] != target[0]:
        return None
    return value * known[1] / target[1]


def readings(value: float, unit: str, wanted: str) -> list[float]:
    """What `value` of one unit may mean in another; none where they do not measure the same. With a
    per cent sign on one side alone, 12 % is 0.12 as well as 12."""
    found = convert(value, unit, wanted)
    if found is None:
        return []
    if unit == wanted or "%" not in (unit, wanted):
        return [found]
    return [found, value * (0.01 if unit == "%" else 100.0)]


def is_known(unit: str) -> bool:
    """Tells whether a unit is listed here."""
    return unit in _UNITS
