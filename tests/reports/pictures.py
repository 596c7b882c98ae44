"""Draw the documentation's pictures from the simulation, as SVG files in infra/docs/pictures.

    uv run --group pictures python -m tests.reports.pictures

`life.svg` is simulated at each run, in some seconds. `year.svg` shows the figures in infra/docs/pictures/year.json, which
`python -m tests.reports.year --json infra/docs/pictures/year.json` writes. The same figures give the same files.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.sam_template import TEMPLATE
from tests.reports.day import BareTimer, Contender, ThisProject
from token_keeper.model import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES = TEMPLATE.parent / "infra" / "docs" / "pictures"

SPAN = 340 * 60
"""Seconds that `life.svg` shows: three tokens of a `token` account, and the gap of a bare timer."""

STEP = 5
"""Seconds between two readings."""

GREY, BLUE, RED = "#808890", "#3b82c4", "#d2544b"
"""Read well on white and on black."""


@dataclass
class Life:
    """What became of one token, in seconds since the first was fetched. `ends_at`: when WeChat stops accepting it."""

    fetched_at: int
    served_until: int
    promised_until: int
    ends_at: int


def lives(contender: Contender) -> list[Life]:
    """Let a reader ask for `SPAN` seconds, and return the tokens that it gets, in order."""
    clock = contender.clock
    began = int(clock())
    found: dict[str, Life] = {}
    for second in range(0, 2 * SPAN, STEP):
        contender.step()
        reading = contender.token_at() if second < SPAN else None
        if reading:
            token, until = reading
            life = found.setdefault(token, Life(second, second, 0, 0))
            life.served_until, life.promised_until = second + STEP, max(life.promised_until, until - began)
        for token, life in found.items():
            if contender.wechat.accepts(token):
                life.ends_at = second + STEP
        clock.sleep(STEP)
    return list(found.values())


def gaps(tokens: list[Life]) -> Iterator[tuple[int, int]]:
    """When a reader got a token that WeChat no longer accepted."""
    return ((life.ends_at, life.served_until) for life in tokens if life.served_until > life.ends_at)


def draw_lives(axes: "Axes", title: str, tokens: list[Life], *, promises: bool) -> None:
    """One row for each token: where WeChat accepts it (pale), where readers get it (strong), and its promise's end."""
    for row, life in enumerate(tokens):
        axes.barh(row, life.ends_at - life.fetched_at, left=life.fetched_at, height=0.62, color=BLUE, alpha=0.3)
        served = min(life.served_until, life.ends_at) - life.fetched_at
        axes.barh(row, served, left=life.fetched_at, height=0.62, color=BLUE)
        axes.text(life.fetched_at + 300, row, f"token {row + 1}", color="white", va="center", fontsize=9)
        if promises and life.promised_until < SPAN:
            axes.plot([life.promised_until] * 2, [row - 0.45, row + 0.45], color=RED, linewidth=1.6)
    for begins, ends in gaps(tokens):
        axes.axvspan(begins, ends, color=RED, alpha=0.25, linewidth=0)
        axes.text(
            (begins + ends) / 2,
            -0.78,
            f"no token: {(ends - begins) // 60} min",
            color=RED,
            ha="center",
            va="center",
            fontsize=9,
        )
    axes.set_title(title, loc="left", color=GREY, fontsize=10)
    axes.set_ylim(len(tokens) - 0.4, -1.1 if list(gaps(tokens)) else -0.6)
    axes.set_yticks([])


def life() -> Any:
    """Three successive tokens of this project, and a bare timer beside them."""
    from matplotlib import pyplot

    figure, (ours, bare) = pyplot.subplots(2, 1, figsize=(9, 4), sharex=True, height_ratios=(3, 2.2))
    draw_lives(
        ours,
        "this project, token: pale where WeChat still accepts the old token; the red line is where its promise ends",
        lives(ThisProject(Kind.TOKEN))[:3],
        promises=True,
    )
    draw_lives(
        bare,
        "a bare 110-minute timer, stable_token: after 110 min the same token comes back, and dies 10 min later",
        lives(BareTimer(Kind.STABLE_TOKEN))[:2],
        promises=False,
    )
    bare.set_xlim(0, SPAN)
    bare.set_xticks(range(0, SPAN, 55 * 60), [f"{minutes} min" for minutes in range(0, SPAN // 60, 55)])
    return figure


def year() -> Any:
    """Seconds a year without an accepted token, of each contender in the year's figures."""
    from matplotlib import pyplot

    figures = json.loads((PICTURES / "year.json").read_text(encoding="utf-8"))
    scale = 365 / figures["days"]
    seconds = {name: scale * result["without_token"] for name, result in figures["contenders"].items()}
    rows = sorted(seconds.items(), key=lambda row: row[1], reverse=True)
    rows.append(("unavoidable", scale * figures["unavoidable"]))

    figure, axes = pyplot.subplots(figsize=(9, 3.4))
    for row, (name, lost) in enumerate(rows):
        color = GREY if name == "unavoidable" else BLUE if name.startswith("this project") else RED
        axes.barh(row, lost, height=0.66, color=color)
        axes.text(lost * 1.15, row, f"{lost:,.0f} s", color=GREY, va="center", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(100, 10 * max(seconds.values()))
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    simulated = "a simulated year" if scale == 1 else f"{figures['days']} simulated days, scaled to a year"
    axes.set_title(f"seconds without an accepted token: {simulated} (logarithmic)", loc="left", color=GREY, fontsize=10)
    return figure


def main() -> None:
    """Write both pictures."""
    import matplotlib

    logging.disable()  # the handlers' own lines
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "wechat-token-keeper",
            "font.family": "sans-serif",
            "axes.edgecolor": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    PICTURES.mkdir(exist_ok=True)
    for draw in (life, year):
        figure = draw()
        figure.tight_layout()
        figure.savefig(PICTURES / f"{draw.__name__}.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
