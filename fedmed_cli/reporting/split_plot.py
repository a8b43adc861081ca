"""A picture of a split: how many examples each site has, and of which labels."""

from __future__ import annotations

from pathlib import Path

from fedmed_cli.errors import MachineError, UsageError
from fedmed_cli.records.split import SplitRecord

MAX_LABELS = 12


def check(path: Path) -> None:
    """UsageError unless `path` is a PNG or SVG; MachineError where matplotlib is missing."""
    if path.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"--plot: expected a .png or .svg file, found {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot: {path.absolute().parent} is not a folder")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MachineError("--plot needs matplotlib, which is not installed", hint="pip install matplotlib") from None


def draw(record: SplitRecord, path: Path) -> None:
    """Write the picture: one bar a site, divided by label; the commonest labels have colours, the rest is grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    totals: dict[str, int] = {}
    for counts in record.sites.values():
        for label, number in counts.labels.items():
            totals[label] = totals.get(label, 0) + number
    common = sorted(totals, key=lambda label: (-totals[label], label))[:MAX_LABELS]
    names = list(record.sites)
    figure = Figure(figsize=(8, max(2.0, 0.35 * len(names) + 1.5)), layout="constrained")
    axes = figure.add_subplot()
    left = [0] * len(names)
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]  # of a listed colormap
    parts = [(label, [record.sites[name].labels.get(label, 0) for name in names]) for label in common]
    rest = [sum(record.sites[name].labels.values()) for name in names]
    rest = [total - sum(values[i] for _, values in parts) for i, total in enumerate(rest)]
    for number, (label, values) in enumerate([*parts, *([("all others", rest)] if any(rest) else [])]):
        colour = colours[number] if number < len(parts) else "0.7"
        axes.barh(names, values, left=left, color=colour, label=label[:40])
        left = [a + b for a, b in zip(left, values, strict=True)]
    for name, total in zip(names, left, strict=True):
        distance = record.sites[name].jensen_shannon
        axes.annotate(f" {total:,} (JS {distance:.2f})", (total, name), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel("examples")
    axes.set_title(f"{record.num_examples:,} examples, {record.method}", loc="left")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    # No date and fixed ids in the file: the same split gives the same picture.
    with matplotlib.rc_context({"svg.hashsalt": "fedmed"}):
        svg = path.suffix.lower() == ".svg"
        figure.savefig(path, dpi=150, metadata={"Date": None} if svg else {"Software": None})
