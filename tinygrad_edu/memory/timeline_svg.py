"""A picture of one step of a chip: four lanes over time, the waits of the compute lane hatched.

The picture must stay small however many events there are. Events too close to tell apart share a
bar, which is as opaque as the time under it is busy; how close that is grows until the text fits.
It brings its own background, so it reads the same on light and dark pages.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from .timeline import LANES, Event, Step

LIMIT = 180_000  # characters
LEFT, RIGHT, TOP, ROW, BAR = 132, 22, 50, 44, 28  # pixels
CHAR = 5.6  # pixels; a character of the small font
NAME = 48  # characters of a name that are shown
STYLE = """
.timeline text{font:11px system-ui,-apple-system,Segoe UI,DejaVu Sans,sans-serif;fill:#56636f}
.timeline .title{font-size:14px;font-weight:600;fill:#1f2a35}
.timeline .lane{font-size:12px;font-weight:600;fill:#1f2a35}
.timeline .small,.timeline .in{font-size:10px} .timeline .tick{text-anchor:middle}
.timeline .in{fill:#fff;text-anchor:middle;pointer-events:none}
.timeline .track{fill:#eef1f4} .timeline .grid{stroke:#d4dae0;fill:none}
.timeline .fetch{fill:#2f7ec0} .timeline .compute{fill:#35906a}
.timeline .drain{fill:#8a63b8} .timeline .update{fill:#a8741a}
.timeline .stall{fill:url(#timeline-stall)} .timeline g path:hover{opacity:.75}"""
HATCH = (
    '<defs><pattern id="timeline-stall" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<path d="M0 0h6v6h-6z" fill="#fbd9d3"/>'
    '<path d="M-1 1l2 -2M0 6l6 -6M5 7l2 -2" stroke="#d1432b" stroke-width="1.6"/></pattern></defs>'
)


@dataclass
class Bar:
    """What is drawn as one: events of a lane, `busy` of the nanoseconds from `start` to `end`."""

    start: int
    end: int
    busy: int
    name: str
    longest: int  # nanoseconds; of the event that gives the name
    count: int = 1
    bytes: int = 0
    flops: int = 0


def bars(events: Iterable[Event], closeness: float) -> list[Bar]:
    """Bars from left to right that do not overlap; any two neighbours span over `closeness` ns."""
    drawn: list[Bar] = []
    for event in sorted(events, key=lambda e: (e.start, -e.end)):
        bar = drawn[-1] if drawn else None
        seen = max(event.start, bar.end) if bar else event.start  # what earlier work leaves visible
        took, work = event.end - event.start, (event.bytes, event.flops)
        if bar is None or event.end > max(bar.end, bar.start + closeness):
            drawn.append(Bar(seen, event.end, event.end - seen, event.name, took, 1, *work))
            continue
        bar.busy += max(0, event.end - seen)
        bar.end = max(bar.end, event.end)
        if took > bar.longest:
            bar.name, bar.longest = event.name, took
        bar.count += 1
        bar.bytes += event.bytes
        bar.flops += event.flops
    return drawn


def safe(text: str, length: int = NAME) -> str:
    """The end of `text`, which tells layers' weights apart, fit for XML."""
    text = re.sub("[^\t -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", str(text))
    return escape(text if len(text) <= length else f"…{text[1 - length :]}", quote=False)


def number(value: float) -> str:
    """Three digits, no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def scaled(value: float, base: str, big: str = "kMGTPE") -> str:
    """1.2e9 -> 1.2 GB: decimal, as GB/s are."""
    prefix = ""
    for larger in big:
        if value < 999.5:
            break
        value, prefix = value / 1000, larger
    return f"{number(value)} {prefix}{base}"


def unit_of(ns: float) -> tuple[str, float]:
    """The unit of time that reads best at `ns`, and its nanoseconds."""
    units = (("s", 1e9), ("ms", 1e6), ("µs", 1e3))
    return next((unit for unit in units if ns >= unit[1]), ("ns", 1.0))


def duration(ns: float) -> str:
    unit, size = unit_of(ns)
    return f"{number(ns / size)} {unit}"


def tooltip(bar: Bar) -> str:
    """What is under the pointer; the rates of a shared bar are those of its busy time."""
    one = bar.count == 1
    took = bar.longest if one else bar.busy
    name = safe(bar.name)
    parts = [name if one else f"{bar.count} events, longest {name}", duration(took)]
    if bar.bytes:
        parts.append(scaled(bar.bytes, "B"))
        parts += [f"{number(bar.bytes / took)} GB/s"] if took else []
    if bar.flops:
        parts.append(scaled(bar.flops, "FLOP"))
        parts += [scaled(bar.flops / took * 1e9, "FLOP/s")] if took else []
    return ", ".join(parts)


def lane_svg(lane: str, found: list[Bar], start: int, pixels_per_ns: float) -> list[str]:
    parts, labels = [f'<g class="{lane}">'], []
    for bar in found:
        x = (bar.start - start) * pixels_per_ns
        span = (bar.end - bar.start) * pixels_per_ns
        shown = max(span - 0.7 if span > 3 and bar.count == 1 else span, 0.6)  # a seam, then
        share = bar.busy / (bar.end - bar.start) if bar.end > bar.start else 1
        faint = f' fill-opacity="{max(share, 0.15):.2g}"' if share < 0.95 else ""
        tip = f"waited for {tooltip(bar)}" if lane == "stall" else tooltip(bar)
        outline = f"M{x:.1f} 0h{shown:.1f}v{BAR}H{x:.1f}z"
        parts.append(f'<path d="{outline}"{faint}><title>{tip}</title></path>')
        fits = int((shown - 6) / CHAR)
        if lane != "stall" and bar.count == 1 and fits >= min(len(bar.name), 5):
            text = safe(bar.name, min(fits, NAME))
            labels.append(f'<text class="in" x="{x + shown / 2:.1f}" y="{BAR - 10}">{text}</text>')
    return [*parts, "</g>", *labels]


def axis(ns: int, pixels: float, height: float) -> list[str]:
    """Ticks at 1, 2 or 5 times a power of ten, at least 80 pixels apart."""
    unit, size = unit_of(ns)
    least = ns / size * 80 / pixels
    power = 10.0 ** math.floor(math.log10(least))
    tick = next(power * m for m in (1, 2, 5, 10) if m == 10 or power * m >= least)
    parts = []
    for i in range(int(ns / size / tick * (1 + 1e-9)) + 1):
        x = LEFT + i * tick * size / ns * pixels
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP - 6}V{height:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height + 15:.1f}">{i * tick:.6g} {unit}</text>'
        )
    return parts


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1g} %"


def legend(summary: Step, overlap: float | None, y: float) -> list[str]:
    waited = sum(summary.stalls.values())
    wall = summary.wall or 1.0
    text = f"compute waited {percent(waited / wall)} of the step"
    causes = sorted(summary.stalls.items(), key=lambda item: -item[1])
    if waited:
        listed = [f"{safe(cause, 16)} {percent(took / wall)}" for cause, took in causes[:3]]
        text += f" ({', '.join(listed)}{', …' if len(causes) > 3 else ''})"
    hidden = (
        "no transfers"
        if overlap is None
        else f"{percent(overlap)} of transfer time overlaps compute"
    )
    return [
        f'<path class="stall" d="M{LEFT} {y - 10}h18v12h-18z"/>',
        f'<text x="{LEFT + 25}" y="{y}">{text}   ·   {hidden}</text>',
    ]


def draw(
    events: list[Event],
    stalls: list[tuple[str, int, int]],
    summary: Step | None,
    overlap: float | None,
    title: str,
    width: int,
) -> str:
    """The SVG of a step; without a `summary` an empty one that shows its title."""
    width = max(int(width), 360)
    pixels = width - LEFT - RIGHT
    bottom = TOP + ROW * len(LANES)  # of the lanes
    height = bottom + 52
    starts = [e.start for e in events] + [s for _, s, _ in stalls]
    ends = [e.end for e in events] + [end for _, _, end in stalls]
    start = min(starts, default=0)
    span = max(max(ends, default=0) - start, 1)
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="timeline" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{safe(title)}</title><style>{STYLE}</style>{HATCH}",
        f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" fill="#fff" '
        'stroke="#cfd6dd"/>',
    ]
    took = "" if summary is None else f"  ·  {duration(summary.wall * 1e9)}"
    if summary is not None and not summary.whole:
        took += "  ·  its oldest events were dropped"
    head.append(f'<text class="title" x="18" y="28">{safe(title, 80)}{took}</text>')
    for i, lane in enumerate(LANES):
        y = TOP + i * ROW
        note = ""
        if summary is not None:
            note = f"{percent(summary.busy[lane] / (summary.wall or 1.0))} busy"
            if summary.bytes[lane]:
                note = f"{scaled(summary.bytes[lane], 'B')}, {note}"
        head += [
            f'<rect class="track" x="{LEFT}" y="{y}" width="{pixels}" height="{BAR}"/>',
            f'<text class="lane" x="18" y="{y + 12}">{lane}</text>',
            f'<text class="small" x="18" y="{y + 25}">{note}</text>',
        ]
    if summary is None:
        return "\n".join([*head, "</svg>"])
    head += axis(span, pixels, bottom - ROW + BAR + 8)
    foot = [*legend(summary, overlap, height - 16), "</svg>"]
    waits = [Event("stall", *stall) for stall in stalls]
    by_lane = [[e for e in events if e.lane == lane] for lane in LANES]
    closeness = 1.0  # pixels
    while True:
        body = []
        for i, (lane, mine) in enumerate(zip(LANES, by_lane, strict=True)):
            body.append(f'<g transform="translate({LEFT} {TOP + i * ROW})">')
            body += lane_svg(lane, bars(mine, closeness / pixels * span), start, pixels / span)
            if lane == "compute":
                found = bars(waits, closeness / pixels * span)
                body += lane_svg("stall", found, start, pixels / span)
            body.append("</g>")
        svg = "\n".join([*head, *body, *foot])
        # Past the width of the picture a lane is one bar, and nothing is left to merge.
        if len(svg) <= LIMIT or closeness > pixels:
            return svg
        closeness *= 1.5
