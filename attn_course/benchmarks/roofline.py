"""One picture of every kernel: what its bytes and FLOPs allow, and what was measured.

A kernel's arithmetic intensity, FLOPs over bytes, comes from its benchmark case, which counts
both for any size; a device's two peaks come from its maker. Together they bound the rate that
the kernel can reach there (Williams et al., 2009, the roofline). Where a run on that device is
stored, its rate stands beside the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attn_course.benchmarks.cases import FORWARD, all_cases
from attn_course.benchmarks.results import RESULTS, find_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Chapter -> its kernel's name and benchmark. The heatmaps' kernel, 0, serves all chapters.
KERNELS = {
    0: ("pooled heatmap", "heatmaps"),
    1: ("kernel regression", "kernel_regression"),
    2: ("masked softmax", "masked_softmax"),
    3: ("additive attention", "additive_attention"),
    4: ("dot-product attention", "dot_product_attention"),
    5: ("rotary positions", "rotary"),
    6: ("add & norm", "add_norm"),
    7: ("patch embedding", "patch_embedding"),
    8: ("windowed attention", "windowed_attention"),
    9: ("Linformer attention", "linformer"),
    10: ("visit probabilities", "monotonic"),
}


@dataclass(frozen=True)
class Device:
    """A GPU as its maker describes it.

    Attributes:
        name: How figures call it.
        flops: FLOPs a second in fp32, without tensor cores.
        bandwidth: Bytes a second between memory and chip.
        source: Where these numbers stand.
    """

    name: str
    flops: float
    bandwidth: float
    source: str

    @property
    def ridge(self) -> float:
        """The intensity at which both limits are equal, in FLOPs a byte."""
        return self.flops / self.bandwidth

    def bound(self, intensity: float) -> float:
        """The FLOPs a second that an intensity allows.

        Example:
            >>> DEVICES["A100"].bound(1.0) / 1e12
            1.555
        """
        return min(self.flops, intensity * self.bandwidth)


#: A part of a device's name, as PyTorch gives it -> its published peaks.
DEVICES = {
    "A100": Device("NVIDIA A100 40 GB", 19.5e12, 1555e9, "NVIDIA (2020), A100 whitepaper"),
    "H100": Device("NVIDIA H100 SXM", 67e12, 3.35e12, "https://www.nvidia.com/en-us/data-center/h100"),
    "H200": Device("NVIDIA H200 SXM", 67e12, 4.8e12, "https://www.nvidia.com/en-us/data-center/h200"),
}  # fmt: skip


@dataclass(frozen=True)
class Dot:
    """One kernel at one size, forward, in fp32.

    Attributes:
        chapter: Where it is taught; 0 for all.
        name: How figures call it.
        title: What the benchmark computes, with ``n`` for the size.
        size: The ``n``.
        flops: The fewest operations that the task takes.
        bytes_moved: The fewest bytes: inputs read once, outputs written once.
        seconds: The median time of the stored run, ``None`` without one.
    """

    chapter: int
    name: str
    title: str
    size: int
    flops: int
    bytes_moved: int
    seconds: float | None

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.bytes_moved


def dots(device: str = "A100", directory: Path = RESULTS) -> list[Dot]:
    """Every kernel at the largest size that a GPU is measured at.

    Args:
        device: A key of ``DEVICES``; stored runs of other devices are not looked at.
        directory: Where runs lie.

    Returns:
        A dot for each of ``KERNELS``, in order.

    Raises:
        ValueError: The device's peaks are not known.

    Example:
        >>> softmax = dots()[2]
        >>> softmax.name, round(softmax.intensity, 2)
        ('masked softmax', 0.67)
    """
    _peaks(device)
    cases = all_cases()
    found = []
    for chapter, (name, key) in KERNELS.items():
        case = cases[key]
        size = max(case.sizes["cuda"][FORWARD])
        work = case.flops(size, FORWARD), case.bytes_moved(size, FORWARD)
        found.append(
            Dot(chapter, name, case.title, size, *work, _seconds(key, size, device, directory))
        )
    return found


def _peaks(device: str) -> Device:
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}; got {device!r}.")
    return DEVICES[device]


def _seconds(key: str, size: int, device: str, directory: Path) -> float | None:
    """How long our kernel took in the newest stored run on the device."""
    record = find_run(key, device, directory)
    for row in record["results"] if record else ():
        what = row["peer"], row["direction"], row["size"], row["status"]
        if what == ("triton", FORWARD, size, "measured"):
            return float(row["median_s"])
    return None


def plot_roofline(
    device: str = "A100",
    directory: Path = RESULTS,
    figsize: tuple[float, float] = (7.0, 4.4),
) -> Figure:
    """Draw the roofline of a device with a dot for every kernel.

    A full dot is a measured rate; a hollow one lies on the bound, and nothing is measured. Blue
    dots are held back by memory, vermillion ones by arithmetic.

    Args:
        device: A key of ``DEVICES``.
        directory: Where runs lie.
        figsize: In inches.

    Returns:
        The figure.

    Raises:
        ValueError: The device's peaks are not known.
    """
    import matplotlib.pyplot as plt

    from attn_course.heatmaps import PALETTE, use_style

    peaks, found = _peaks(device), dots(device, directory)
    with plt.rc_context():
        use_style()
        figure, axes = plt.subplots(figsize=figsize)
        found.sort(key=lambda dot: dot.intensity)
        ends = found[0].intensity / 3, found[-1].intensity * 40
        roof = [ends[0], peaks.ridge, ends[1]]
        axes.loglog(roof, [peaks.bound(x) / 1e12 for x in roof], color="#444444")
        axes.axvline(peaks.ridge, color="#888888", linestyle="--", linewidth=1)
        for rank, dot in enumerate(found):
            color = PALETTE[0] if dot.intensity < peaks.ridge else PALETTE[1]
            rate = peaks.bound(dot.intensity) if dot.seconds is None else dot.flops / dot.seconds
            at, fill = (dot.intensity, rate / 1e12), "white" if dot.seconds is None else color
            axes.plot(*at, "o", ms=8, mec=color, mfc=fill, mew=1.8)
            # Labels hang lower the further left, so that no line crosses one.
            axes.annotate(
                f"{dot.chapter or 'all'}  {dot.name}", at, (dot.intensity, 0.05 + 0.062 * rank),
                textcoords=("data", "axes fraction"), fontsize=8.5, va="center",
                arrowprops={"arrowstyle": "-", "color": "#AAAAAA", "lw": 0.8, "relpos": (0, 0.5),
                            "shrinkB": 5},
            )  # fmt: skip
        axes.set(
            xlabel=f"arithmetic intensity, FLOPs a byte (ridge at {peaks.ridge:.1f})",
            ylabel="TFLOP/s", title=f"{peaks.name}, fp32 without tensor cores", xlim=ends,
            ylim=(peaks.bound(ends[0]) / 4e12, peaks.flops * 3 / 1e12),
        )  # fmt: skip
    return figure
