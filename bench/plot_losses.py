#!/usr/bin/env python3
"""Draws a metric of several runs over their steps into one SVG.

    python3 bench/plot_losses.py METRIC NAME=RUN [NAME=RUN ...] > losses.svg

RUN is a run's directory. Needs nothing but the standard library.
"""
import json
import sys
from pathlib import Path

COLOURS = ["#1f6feb", "#d9730d", "#1a7f4e", "#8250df"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 800, 420, 70, 20, 44, 46


def points(run, metric):
    rows = (json.loads(line) for line in open(Path(run) / "metrics.jsonl"))
    return [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]


def main():
    metric, runs = sys.argv[1], [word.split("=", 1) for word in sys.argv[2:]]
    series = [(name, points(run, metric)) for name, run in runs]
    xs, ys = zip(*(point for _, line in series for point in line))
    (x0, x1), (y0, y1) = (min(xs), max(xs)), (min(ys), max(ys))
    px = lambda x: LEFT + (x - x0) / max(x1 - x0, 1) * (WIDTH - LEFT - RIGHT)
    py = lambda y: HEIGHT - BOTTOM - (y - y0) / max(y1 - y0, 1e-12) * (HEIGHT - TOP - BOTTOM)
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui,sans-serif" '
          f'font-size="14" fill="#57606a"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>')
    for i in range(6):
        y = y0 + (y1 - y0) * i / 5
        print(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}" stroke="#d8dee4"/>'
              f'<text x="{LEFT - 8}" y="{py(y) + 5:.1f}" text-anchor="end">{y:.3g}</text>')
        x = x0 + (x1 - x0) * i / 5
        print(f'<text x="{px(x):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{x:.0f}</text>')
    print(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">step</text>')
    print(f'<text x="12" y="24" fill="#1c2128" font-weight="600">{metric}</text>')
    for i, (name, line) in enumerate(series):
        colour, x = COLOURS[i % len(COLOURS)], LEFT + 120 + 140 * i
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in line)
        # Later lines are thinner, so that one behind another is seen.
        print(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{max(4 - 2.5 * i, 1.2)}" stroke-opacity=".8"/>'
              f'<rect x="{x}" y="16" width="18" height="4" fill="{colour}"/><text x="{x + 24}" y="24">{name}</text>')
    print("</svg>")


main()
