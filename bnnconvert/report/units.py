"""Numbers as people read them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def as_bytes(count: int | None) -> str:
    """`1,234 B`, or with a second, rounded form from 10 KiB on: `12,345 B (12.1 KiB)`. Units: bytes."""
    if count is None:
        return "unknown"
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    exact = f"{count:,} B"
    return exact if count < 10 * 1024 else f"{exact} ({size:.1f} {unit})"


def as_count(count: int) -> str:
    """`1,234` or, from a hundred thousand on, `12.3 M`."""
    for factor, unit in ((1e9, "G"), (1e6, "M")):
        if count >= factor / 10:
            return f"{count / factor:.1f} {unit}"
    return f"{count:,}"


def as_percent(share: float, digits: int = 2) -> str:
    """`87.42 %` for 0.8742."""
    return f"{100 * share:.{digits}f} %"


def as_ratio(before: float, after: float) -> str:
    """`29.4 times smaller`, or nothing where that makes no sense."""
    return f"{before / after:.1f} times smaller" if 0 < after <= before else ""


def as_shape(shape: Sequence[int | None]) -> str:
    """`16x3x3x3`; a free axis is N."""
    return "x".join("N" if size is None else str(size) for size in shape)


def as_inputs(inputs: Iterable[Mapping[str, Any]]) -> str:
    """`Nx3x32x32, Nx16 int64`: shape and element type of each input, float32 where nothing is said."""
    return ", ".join(as_shape(i["shape"]) + ("" if i["dtype"] == "float32" else f" {i['dtype']}") for i in inputs)


def as_duration(seconds: float) -> str:
    """`42 s`, `3:07` minutes or `1:02:03` hours."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def as_time(seconds: float) -> str:
    """`12.3 us`, `1.23 ms` or `1.23 s`."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.2f} {unit}"
    return f"{seconds * 1e6:.1f} us"
