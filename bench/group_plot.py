"""Draws how a group starts and heals as it grows: docs/images/large-groups.svg.

    bench/group.py > table.md; bench/group_plot.py table.md > docs/images/large-groups.svg

Reads the table that `bench/group.py` prints.
"""

import sys

from index_plot import HEIGHT, WIDTH, panel

# Rows of the table, the column, and the title.
PANELS = [
    ("fresh start", 4, "fresh start: first step after, s"),
    ("from a checkpoint", 3, "restored: all level after, s"),
    ("from a checkpoint", 6, "restored: sent by one, at most"),
    ("from a checkpoint", 7, "restored: longest chain"),
    ("1 lost, survivors", 4, "one lost: next step after, s"),
]


def main(path):
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in open(path) if line.startswith("| ") and line[2].isdigit()]
    points = lambda what, column: [(int(row[0]), float(row[column])) for row in rows if row[1] == what]
    panels = [panel(WIDTH * index, title, points(what, column)) for index, (what, column, title) in enumerate(PANELS)]
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(PANELS) + 24}" height="{HEIGHT}" font-family="sans-serif" font-size="10">')
    print('<rect width="100%" height="100%" fill="white"/>')
    print("\n".join(panels))
    print(f'<text x="{WIDTH * len(PANELS) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">members</text>\n</svg>')


main(sys.argv[1])
