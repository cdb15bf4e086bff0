"""Draws the growth of an index: docs/images/index-growth.svg.

Reads lines as `bench_index … open` prints them, one for each number of shards, from the files that are named.
"""

import json
import math
import sys

PANELS = [
    ("index on disk, MB", lambda line: line["index_bytes"] / 1e6),
    ("opened after, s", lambda line: line["open_seconds"]),
    ("first batch after, s", lambda line: line["first_batch_seconds"]),
    ("resident after the steps, MiB", lambda line: line["resident_mib"]),
]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 220, 190, 46, 34, 30


def decades(low, high):
    """Powers of ten around a range."""
    return [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def panel(at, title, points):
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ticks_x, ticks_y = decades(min(xs), max(xs)), decades(min(ys), max(ys))

    def place(value, ticks, length):
        span = math.log10(ticks[-1]) - math.log10(ticks[0]) or 1
        return length * (math.log10(value) - math.log10(ticks[0])) / span

    x = lambda value: at + LEFT + place(value, ticks_x, WIDTH - LEFT - 12)
    y = lambda value: HEIGHT - BOTTOM - place(value, ticks_y, HEIGHT - BOTTOM - TOP)
    parts = [f'<text x="{at + LEFT}" y="16" font-weight="bold">{title}</text>']
    for tick in ticks_x:
        parts.append(f'<line x1="{x(tick):.1f}" y1="{TOP}" x2="{x(tick):.1f}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{tick:,.0f}</text>')
    for tick in ticks_y:
        parts.append(f'<line x1="{at + LEFT}" y1="{y(tick):.1f}" x2="{at + WIDTH - 12}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{at + LEFT - 4}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#1f5fa8" stroke-width="2"/>')
    parts += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="#1f5fa8"/>' for a, b in points]
    return "\n".join(parts)


def main(paths):
    lines = sorted((json.loads(line) for path in paths for line in open(path)), key=lambda line: line["shards"])
    panels = [panel(WIDTH * index, title, [(line["shards"], value(line)) for line in lines]) for index, (title, value) in enumerate(PANELS)]
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(PANELS) + 24}" height="{HEIGHT}" font-family="sans-serif" font-size="10">')
    print('<rect width="100%" height="100%" fill="white"/>')
    print("\n".join(panels))
    print(f'<text x="{WIDTH * len(PANELS) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">shards</text>\n</svg>')


if __name__ == "__main__":
    main(sys.argv[1:])
