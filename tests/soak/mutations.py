"""Seeded damage of files: blind mutations of bytes, and mutations that keep checksums right."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

# Numbers and texts on which readers stumble.
NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    -5,
    255,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    10**12,
    50_000_000,
    10**30,
    -(10**30),
    0.5,
    1e-30,
    -1e30,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
)
TEXTS = (
    "",
    "x",
    "\0",
    "\ud800",
    "é" * 40,
    "F" * 5000,
    "../../etc/passwd",
    "NaN",
    "1" * 5000,
    "%s{}",
)
_SEALED = '"sha256":"'


def damage(raw: bytes, random: Random, other: bytes = b"") -> bytes:
    """Return bytes with one to four blind mutations.

    Args:
        raw: Of a file.
        random: Decides all.
        other: Of another file, from which blocks can be spliced in.
    """
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        random.choice(_BLIND)(data, random, other)
    return bytes(data)


def _flip_bit(data: bytearray, random: Random, other: bytes) -> None:
    if data:
        data[_place(data, random)] ^= 1 << random.randrange(8)


def _set_byte(data: bytearray, random: Random, other: bytes) -> None:
    if data:
        data[_place(data, random)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _set_word(data: bytearray, random: Random, other: bytes) -> None:
    """Write an extreme integer of 2, 4 or 8 bytes."""
    size = random.choice((2, 4, 8))
    value = random.choice(
        (0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), random.getrandbits(8 * size))
    )
    at = _place(data, random) if data else 0
    data[at : at + size] = value.to_bytes(size, random.choice(("little", "big")))


def _truncate(data: bytearray, random: Random, other: bytes) -> None:
    del data[random.randrange(len(data) + 1) :]


def _extend(data: bytearray, random: Random, other: bytes) -> None:
    data += random.choice((b"\0" * 8, random.randbytes(16), bytes(data[:64]), b"\xff" * 5000))


def _delete(data: bytearray, random: Random, other: bytes) -> None:
    at, size = _block(data, random)
    del data[at : at + size]


def _duplicate(data: bytearray, random: Random, other: bytes) -> None:
    at, size = _block(data, random)
    data[at:at] = data[at : at + size]


def _swap(data: bytearray, random: Random, other: bytes) -> None:
    a, size = _block(data, random)
    b = random.randrange(len(data) + 1 - size)
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def _splice(data: bytearray, random: Random, other: bytes) -> None:
    at, size = _block(data, random)
    first = random.randrange(len(other) + 1)
    data[at : at + size] = other[first : first + size]


_BLIND: tuple[Callable[[bytearray, Random, bytes], None], ...] = (
    _flip_bit,
    _flip_bit,
    _flip_bit,
    _set_byte,
    _set_byte,
    _set_word,
    _set_word,
    _truncate,
    _extend,
    _delete,
    _duplicate,
    _swap,
    _splice,
)


def _place(data: bytearray, random: Random) -> int:
    """Return a place in data, half of the time among the first bytes, where headers are."""
    near = min(len(data), random.choice((16, 128, len(data), len(data))))
    return random.randrange(near)


def _block(data: bytearray, random: Random) -> tuple[int, int]:
    size = random.randrange(1 + min(len(data), random.choice((4, 16, 256))))
    return random.randrange(len(data) + 1 - size), size


# ---- JSON ----


def damage_json(text: str, random: Random) -> str:
    """Return JSON text with one to three nodes changed, or with its text changed blindly."""
    if random.random() < 0.1:
        return damage(text.encode(), random).decode("utf-8", "surrogateescape")
    if random.random() < 0.05:
        depth = random.choice((50, 200, 2000, 50_000))
        return random.choice(("[" * depth, '{"a":' * depth, "[" * depth + "]" * depth))
    tree = json.loads(text)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        tree = _changed(tree, random)
    return json.dumps(tree, separators=(",", ":"))


def _changed(node: Any, random: Random) -> Any:
    """Return a tree with one node changed."""
    if isinstance(node, dict) and node and random.random() < 0.95:
        name = random.choice(sorted(node))
        what = random.random()
        if what < 0.08:
            return {k: v for k, v in node.items() if k != name}
        if what < 0.16:
            return {(random.choice(TEXTS) if k == name else k): v for k, v in node.items()}
        if what < 0.2:
            return {**node, random.choice(TEXTS): random.choice(NUMBERS)}
        return {**node, name: _changed(node[name], random)}
    if isinstance(node, list) and node and random.random() < 0.8:
        what, at = random.random(), random.randrange(len(node))
        if what < 0.1:
            return node[:at] + node[at + 1 :]
        if what < 0.2:
            return node + [node[at]] * random.choice((1, 1, 100, 5000))
        return [_changed(v, random) if k == at else v for k, v in enumerate(node)]
    deep: Any = 1
    for _ in range(random.choice((3, 100, 400))):
        deep = [deep]
    number = node if isinstance(node, int | float) else 1
    near = (number * 2, number + 1, -number)
    return random.choice(
        (*NUMBERS, *near, *near, *TEXTS, None, True, False, [], {}, [node], {"a": node}, deep)
    )


# ---- formats with headers of their own or with checksums ----

# Dtypes in the header of a .npy file.
_DESCRS = (
    *("<f8", ">f4", "<f2", "<e", "<f16", "|u1", "<i8", "|b1", "<c8", "<M8[ns]", "|O", "<U9"),
    *("|S0", "|V4", "V2000000000", "<U500000000", "(9,)f4", "f4,f4", "\\d", "'", "x" * 50),
)
# Instead of such a header, which is a Python expression.
_EXPRESSIONS = (
    *("(" * 190 + ")" * 190, "[" * 60_000, "-" * 9000 + "1", "not " * 300, "1+" * 500),
    *("f" + "(x)" * 300, "'\n", "\0", "{'descr': 1L}", "'''", "{**{}}", "0777", "\\", '"\\N{x}"'),
)


def damage_safetensors(raw: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change the header or the numbers of a safetensors file; a checksum of ours stays right."""
    length = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + length].decode(), raw[8 + length :]
    if random.random() < 0.15:
        data = damage(data, random, other)
    elif random.random() < 0.5:
        header = _with_metadata_changed(header, random)
    else:
        header = damage_json(header, random)
    text = header.encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8) if random.random() < 0.9 else b""
    return sealed(len(text).to_bytes(8, "little") + text + data)


def _with_metadata_changed(header: str, random: Random) -> str:
    """Change a text of the metadata, as JSON where it is."""
    tree = json.loads(header)
    texts = {k: v for k, v in tree.get("__metadata__", {}).items() if k != "sha256"}
    if not texts:
        return damage_json(header, random)
    name = random.choice(sorted(texts))
    try:
        json.loads(texts[name])
        tree["__metadata__"][name] = damage_json(texts[name], random)
    except ValueError:
        tree["__metadata__"][name] = random.choice((*TEXTS, *map(str, NUMBERS)))
    return json.dumps(tree, separators=(",", ":"))


def sealed(raw: bytes) -> bytes:
    """Return a file of ``fastmsgm.tensors`` with the right checksum, others as they are."""
    at = raw.find(_SEALED.encode())
    if at < 0:
        return raw
    at += len(_SEALED)
    unsealed = raw[:at] + b"0" * 64 + raw[at + 64 :]
    return raw[:at] + hashlib.sha256(unsealed).hexdigest().encode() + raw[at + 64 :]


def damage_manifest(raw: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change a manifest or journal of samples; its checksum stays right where it can be read."""
    text = damage_json(raw.decode(), random)
    try:
        content = json.loads(text)
        content.pop("sha256")
        ordered = json.dumps(content, sort_keys=True)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return text.encode("utf-8", "surrogatepass")
    content["sha256"] = hashlib.sha256(ordered.encode()).hexdigest()
    return json.dumps(content).encode()


def damage_npy(raw: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change the header's text of a .npy file, with its length right."""
    size = struct.unpack("<H", raw[8:10])[0]
    header, data = raw[10 : 10 + size].decode("latin1"), raw[10 + size :]
    what = random.randrange(6)
    if what == 0:
        descr = random.choice(_DESCRS)
        header = header.replace("<f4", descr)
    elif what == 1:
        shape = ", ".join(
            str(random.choice((*NUMBERS, 3, 4, 7))) for _ in range(random.randrange(9))
        )
        header = header[: header.index("(") + 1] + shape + header[header.index(")") :]
    elif what == 2:
        header = random.choice(_EXPRESSIONS)
    elif what == 3:
        header = header.replace("False", random.choice(("True", "1", "None", "[]", "2L", "'x'")))
    elif what == 4:
        header = damage(header.encode("latin1"), random).decode("latin1")
    else:
        data = damage(data, random, other)
    text = header.encode("latin1")[:65_535]
    if random.random() < 0.2:  # version 2, with a length of 4 bytes
        length = random.choice((len(text), len(text), 2**32 - 1, 2**31))
        return raw[:6] + b"\2\0" + struct.pack("<I", length) + text + data
    return raw[:8] + struct.pack("<H", len(text)) + text + data


def damage_npz(raw: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change the array in a .npz file, or its name, with the archive's checksums right."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    kind = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, content in entries:
            name = random.choice((name, name, name, "é.npy", "x\n\x1b[31m.npy", "a" * 3000, "/"))
            archive.writestr(name, random.choice((damage_npy, damage))(content, random, other))
        if random.random() < 0.1:
            archive.writestr("more.npy", random.choice((b"", b"x" * 100)))
    result = out.getvalue()
    if random.random() < 0.2:  # lie about the size
        at = result.rfind(b"PK\x01\x02")
        lie = struct.pack("<I", random.choice((0, 1, 2**20, 2**30, 2**32 - 1)))
        result = result[: at + 24] + lie + result[at + 28 :]
    return result


def damage_gzip(raw: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change what is compressed in a gzip file, with its checksum right."""
    return gzip.compress(damage(gzip.decompress(raw), random, other), 1, mtime=0)


def damage_png(raw: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change a chunk of a PNG file, with its checksum right."""
    chunks, at = [], 8
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        chunks.append((raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]))
        at += 12 + size
    which = random.randrange(len(chunks))
    kind, content = chunks[which]
    if kind == b"IHDR" and random.random() < 0.5:
        side = random.choice((0, 1, 5, 60_000, 9_000, 2**31 - 1, 2**32 - 1))
        content = struct.pack(">II", side, random.choice((4, side))) + content[8:]
    else:
        content = damage(content, random, other)
    if random.random() < 0.2:
        kind = random.choice(
            (b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"zTXt", b"iCCP", b"acTL", b"fcTL")
        )
    chunks[which] = kind, content
    if random.random() < 0.1:
        chunks.insert(random.randrange(1, len(chunks) + 1), random.choice(chunks))
    return raw[:8] + b"".join(
        len(c).to_bytes(4, "big") + k + c + zlib.crc32(k + c).to_bytes(4, "big") for k, c in chunks
    )
