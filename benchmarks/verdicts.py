"""What curves of bytes against PSNR say of us, in lines."""

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.other_codecs import BLURHASH, THUMBHASH, WEBP
from benchmarks.our_codec import OURS
from benchmarks.rates import Curve, Ladder, Point

MOST_BYTES = 120  # without a header, where we are compared with picture formats
BLURHASH_SETTING = "4x4"


def answers(curves: Sequence[Curve], ladders: Sequence[Ladder]) -> list[str]:
    """How we compare with each method of others, by each of our ladders."""
    by_name, lines = {curve.method: curve for curve in curves}, []
    for ladder in ladders:
        start = f"effort {ladder.effort}: "
        for name, point, size in _aims(by_name):
            lines.append(start + aim_line(ladder, name, point, size))
        for curve in curves:
            if not curve.method.startswith((OURS, BLURHASH, THUMBHASH)):
                lines.append(start + gain_line(curve.method, gains(ladder, curve, MOST_BYTES)))
    return lines


def _aims(curves: Mapping[str, Curve]) -> Iterator[tuple[str, Point, float]]:
    """What we are compared with, by name: its point, and the bytes that we may take."""
    thumb = curves[THUMBHASH].points[0]
    yield f"{THUMBHASH}, {thumb.bytes:g} bytes", thumb, thumb.bytes
    if BLURHASH in curves:
        points = curves[BLURHASH].points
        blur = next(point for point in points if point.setting == BLURHASH_SETTING)
        name = f"{BLURHASH} {BLURHASH_SETTING}, {blur.bytes:g} characters"
        yield f"{name} taken as bytes", blur, blur.bytes
        yield f"{name} against as many of base64", blur, blur.bytes * 6 // 8
    webp = min(curves[WEBP].points, key=lambda point: point.bytes)
    name = f"{WEBP}'s smallest, {webp.bytes:.1f} bytes"
    yield name, webp, webp.bytes
    yield f"{name}, without constant ones {webp.bare_bytes:.1f}", webp, webp.bare_bytes


def gains(ladder: Ladder, curve: Curve, most: float) -> list[tuple[float, float]]:
    """How far we are above a method that is spared its constant bytes.

    Args:
        ladder: Ours.
        curve: Theirs.
        most: Bytes; larger points do not count.

    Returns:
        Bytes of each point, and how many dB our longest prefix of at most so many is above it.
    """
    found = []
    for point in curve.points:
        ours = ladder.at(point.bare_bytes)
        if ours is not None and point.bare_bytes <= most:
            found.append((point.bare_bytes, ours[1] - point.psnr))
    return found


def aim_line(ladder: Ladder, name: str, point: Point, size: float) -> str:
    """How far we are above another at its size, and where we come to be as good.

    Args:
        ladder: Ours.
        name: What we are compared with.
        point: Where it is.
        size: The bytes that we may take.
    """
    between, first = ladder.bytes_at(point.psnr), ladder.first_reaching(point.psnr)
    near = f"{between:.1f} bytes interpolated, " if between else ""
    reached = f"reached at {near}{first} in fact" if first else "never reached"
    if ours := ladder.at(size):
        gain = f"{ours[1] - point.psnr:+.2f} dB ({ours[1]:.2f} by {ours[0]} bytes)"
    else:
        gain = "nothing as small"
    return f"{name}: {gain}; its {point.psnr:.2f} dB {reached}"


def gain_line(name: str, found: Sequence[tuple[float, float]]) -> str:
    """What ``gains`` has found, in a line."""
    if not found:
        return f"{name}: no size to compare at"
    above = sum(gain > 0 for _, gain in found)
    listed = ", ".join(f"{gain:+.2f} at {size:.1f}" for size, gain in found)
    sizes = f"{above} of {len(found)} sizes"
    return f"above {name} without constant bytes at {sizes}: dB at bytes {listed}"


def saving_line(name: str, saved: Sequence[tuple[int, float]]) -> str:
    """Percentages that a mode saves, by the bytes of mode fixed, in a line."""
    listed = ", ".join(f"{percent:.1f}% of {size}" for size, percent in saved)
    return f"{name} saves of fixed's bytes at equal PSNR: {listed}"
