"""Guesses of what a file is that is not UTF-8 text.

`compression` and `wide_encoding` decide that a file is refused. `seeming_encoding` only words messages.
"""

_MARKS = ((b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))
_GUESS_BYTES = 1 << 16  # enough for a guess
_COMPRESSED = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\0": "xz", b"PK\x03\x04": "zip"}


def compression(data: bytes) -> str | None:
    """The format of compressed `data`, the start of a file, by its first bytes; None if it is none of the known."""
    if data.startswith(b"BZh") and data[4:10] == b"1AY&SY":
        return "bzip2"
    return next((name for mark, name in _COMPRESSED.items() if data.startswith(mark)), None)


def wide_encoding(data: bytes) -> str | None:
    """UTF-16 or UTF-32 if `data`, the start of a file, has its byte order mark or pattern of zero bytes; or None."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    data = data[: min(len(data), _GUESS_BYTES) // 4 * 4]
    zeros = [data[start::4].count(0) / max(1, len(data) // 4) for start in range(4)]
    for name, wanted in (("UTF-32-LE", "0111"), ("UTF-32-BE", "1110"), ("UTF-16-LE", "0101"), ("UTF-16-BE", "1010")):
        if all(share > 0.5 if zero == "1" else share < 0.1 for share, zero in zip(zeros, wanted, strict=True)):
            return name
    return None


def seeming_encoding(data: bytes) -> str:
    """Apparent encoding of `data`, which is not UTF-8. For error messages only."""
    if (wide := wide_encoding(data)) is not None:
        return wide
    data = data[:_GUESS_BYTES]
    text = data.decode(errors="surrogateescape")
    broken = sum("\udc80" <= c <= "\udcff" for c in text)
    if sum(c > "\x7f" for c in text) > 2 * broken:
        return "damaged UTF-8"
    alone = [i for i, byte in enumerate(data) if byte > 127 and all(c < 128 for c in data[max(0, i - 1) : i + 2 : 2])]
    if 2 * len(alone) < sum(byte > 127 for byte in data):
        return "an encoding with many bytes above 127, such as GB18030, Shift-JIS or Windows-1251"
    return "Windows-1252" if any(128 <= byte < 160 for byte in data) else "ISO-8859-1 (latin-1)"
