"""Ways to spoil bytes and text."""

from collections.abc import Sequence

import numpy as np

WORDS = [
    *("nan", "inf", "-inf", "1e308", "1e39", "-1", "0", "-0.0", "1e-320", "9" * 400, "9" * 5000, "2147483648"),
    *(
        "",
        " ",
        "\0",
        "\ufeff",
        "\u0663",
        "\u00b2",
        "null",
        "true",
        "[]",
        "{}",
        '""',
        "[[1]]",
        "[" * 3000,
        "../..",
        "a" * 300,
    ),
    *("\n", "\r", "\t", "\x0c", "\u2028", "#", ",", '"', "\\", "\ud800"),
]


def bytes_of(rng: np.random.Generator, data: bytes) -> bytes:
    """Spoils bytes in one to four places: flips, runs, cuts, copies, insertions, and hostile numbers."""
    spoiled = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        size = len(spoiled)
        # Half of the damage falls on the beginning, where files keep sizes and offsets.
        at = int(rng.integers(min(size, 64) + 1 if rng.random() < 0.5 else size + 1))
        length = int(rng.integers(1, 9 if rng.random() < 0.7 else 200))
        match rng.integers(8):
            case 0:
                spoiled[at : at + 1] = rng.bytes(1)
            case 1:
                spoiled[at : at + length] = rng.bytes(length)
            case 2:
                spoiled[at : at + length] = bytes([rng.choice([0, 255, 127, 128])]) * length
            case 3:
                del spoiled[at : at + length]
            case 4:
                spoiled[at:at] = spoiled[: rng.integers(size + 1)][-length:]
            case 5:
                order = ("<", ">")[rng.integers(2)]
                number = np.array(rng.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]), f"{order}u4")
                spoiled[at : at + 4] = number.tobytes()
            case 6:
                del spoiled[at:]
            case _:
                if size:
                    spoiled[at : at + 1] = bytes([spoiled[min(at, size - 1)] ^ (1 << int(rng.integers(8)))])
    return bytes(spoiled)


def text_of(rng: np.random.Generator, text: str) -> bytes:
    """Spoils a text's words and lines, and sometimes its bytes."""
    for _ in range(rng.integers(1, 4)):
        lines = text.split("\n")
        k = int(rng.integers(len(lines)))
        match rng.integers(5):
            case 0:
                del lines[k]
            case 1:
                lines.insert(k, lines[rng.integers(len(lines))] if lines else "")
            case 2:
                words = lines[k].split(" ")
                words[rng.integers(len(words))] = pick(rng, WORDS)
                lines[k] = " ".join(words)
            case 3:
                at = int(rng.integers(len(lines[k]) + 1))
                lines[k] = lines[k][:at] + pick(rng, WORDS) + lines[k][at:]
            case _:
                lines[k:] = [lines[k][: rng.integers(len(lines[k]) + 1)]]
        text = "\n".join(lines)
    data = text.encode("utf-8", "surrogatepass")
    return bytes_of(rng, data) if rng.random() < 0.2 else data


def pick(rng: np.random.Generator, values: Sequence):
    """One of the values, which need not be of one type."""
    return values[rng.integers(len(values))]
