"""Draw the method as a picture, figure/figure.png: what flows where, and who learns from which loss.

    python -m figure.framework

x_lr and x in it are real: an image that an untrained generator draws, and what bicubic x4 makes of it.
"""

import torch

from data.sources import network_input
from figure.plots import COLOURS, INK, new_figure, save_figure
from models import Generator
from engine.options import Parser
from utils import random_stream, run_script, seed_everything

WIDTH, HEIGHT = 16, 8.95  # of the drawing, in half inches
FLOW = "#8b929c"
SIZE = 10.5  # of text, in points


def text(axes, x, y, words, colour=INK, size=SIZE, **more):
    axes.text(x, y, words, ha=more.pop("ha", "center"), va="center", fontsize=size, color=colour,
              math_fontfamily="stixsans", **more)


def box(axes, x, y, width, height, words, colour, fill="white", ink=INK):
    """A rounded box around the centre (x, y)."""
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, facecolor=fill, edgecolor=colour,
                                  boxstyle="round,pad=0,rounding_size=0.18", linewidth=1.6, zorder=3))
    text(axes, x, y, words, ink, zorder=4)


def arrow(axes, points, colour=FLOW, dashed=False, radius=0.25):
    """An arrow along `points`, its corners rounded."""
    from matplotlib.patches import FancyArrowPatch, PathPatch
    from matplotlib.path import Path

    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:]):
        vertices += [_towards(corner, before, radius), corner, _towards(corner, after, radius)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    tip = _towards(points[-1], points[-2], 0.3)
    path = Path([*vertices, tip], [*codes, Path.LINETO])
    axes.add_patch(PathPatch(path, facecolor="none", edgecolor=colour, linewidth=1.9, zorder=2, snap=False,
                             linestyle=(0, (3.5, 1.6)) if dashed else "-"))
    axes.add_patch(FancyArrowPatch(tip, points[-1], arrowstyle="-|>,head_length=5,head_width=2.6", color=colour,
                                   linewidth=1.9, shrinkA=0, shrinkB=0, zorder=2, snap=False))


def _towards(point, other, distance):
    """The point at `distance` from `point` on the way to `other`, along one axis."""
    return tuple(p + max(-distance, min(distance, o - p)) for p, o in zip(point, other))


def blocks(axes, x, y, height, colour, present, count=9):
    """A network as a row of blocks around (x, y): the first `present` are there, the others to come."""
    from matplotlib.patches import FancyBboxPatch

    for i in range(count):
        there = i < present
        axes.add_patch(FancyBboxPatch(
            (x + (i - count / 2) * 0.32 + 0.05, y - height / 2), 0.22, height, zorder=3, linewidth=1.1,
            boxstyle="round,pad=0,rounding_size=0.05", facecolor=colour if there else "white", edgecolor=colour,
            linestyle="-" if there else (0, (2, 1.2))))


def thumbnail(axes, image, x, y, side):
    """A grey image (1, 1, h, w) in [0, 1] around (x, y)."""
    extent = (x - side / 2, x + side / 2, y - side / 2, y + side / 2)
    axes.imshow(image[0, 0].numpy(), cmap="gray", vmin=0, vmax=1, extent=extent, zorder=3, interpolation="nearest")


@torch.no_grad()
def example():
    """x_lr (1, 1, 12, 12) and x (1, 1, 48, 48) of a generator for x4."""
    seed_everything(6, "framework")
    x_lr = Generator(256, 12)(torch.randn(1, 256, generator=random_stream(6, "framework z")))
    return x_lr, network_input(x_lr, 4, True)


def draw_images(axes):
    """z -> G_s -> x_lr -> up_s -> x, and x to both networks."""
    from matplotlib.patches import Polygon, Rectangle

    middle = 4.8
    for i, shade in enumerate((0.75, 0.35, 0.6, 0.9, 0.45, 0.7)):
        axes.add_patch(Rectangle((0.75, middle - 0.9 + 0.3 * i), 0.3, 0.3, facecolor=str(shade), edgecolor="white",
                                 zorder=3))
    text(axes, 0.9, middle + 1.25, "$z \\sim N(0, I)$", size=9.5)
    axes.add_patch(Polygon([(1.9, middle - 0.55), (3.5, middle - 1), (3.5, middle + 1), (1.9, middle + 0.55)],
                           facecolor=COLOURS["generator"], edgecolor=COLOURS["generator"], linewidth=1.6,
                           joinstyle="round", zorder=3))
    text(axes, 2.72, middle + 0.15, "$G_s$", "white", 14, zorder=4)
    text(axes, 2.72, middle - 0.38, "generator", "white", 8, zorder=4)
    x_lr, x = example()
    thumbnail(axes, x_lr, 4.75, middle, 0.8)
    thumbnail(axes, x, 8.15, middle, 1.9)
    text(axes, 4.75, middle - 0.75, "$x_\\mathrm{lr}$")
    text(axes, 8.15, middle - 1.27, "$x$")
    box(axes, 6.15, middle, 0.95, 0.62, "$\\mathrm{up}_s$", FLOW)
    for begin, end in ((1.15, 1.85), (3.55, 4.3), (5.2, 5.63), (6.67, 7.15)):
        arrow(axes, [(begin, middle), (end, middle)])
    arrow(axes, [(9.15, middle), (9.5, middle), (9.5, 6.5), (10.1, 6.5)])
    arrow(axes, [(9.15, middle), (9.5, middle), (9.5, 3.1), (10.1, 3.1)])


def draw_networks(axes):
    """T and S, their outputs and D(S(x), T(x))."""
    blocks(axes, 11.6, 6.5, 1.1, COLOURS["teacher"], 9)
    blocks(axes, 11.6, 3.1, 0.6, COLOURS["student"], 6)
    text(axes, 11.6, 7.35, "teacher $T$, frozen", COLOURS["teacher"])
    text(axes, 11.6, 3.75, "student $S$, growing", COLOURS["student"])
    arrow(axes, [(13.1, 6.5), (14.35, 6.5), (14.35, 5.35)])
    arrow(axes, [(13.1, 3.1), (13.65, 3.1), (13.65, 4.25)])


def draw_losses(axes):
    """The three losses, and whom each teaches."""
    generator, student = COLOURS["generator"], COLOURS["student"]
    box(axes, 14.35, 4.8, 2.7, 1.0, "$D(S(x), T(x))$", student)

    # Student phase
    arrow(axes, [(14.35, 4.3), (14.35, 2.1), (11.6, 2.1), (11.6, 2.7)], student)

    # Generator phase: L_adv below, L_R above
    arrow(axes, [(15.2, 4.3), (15.2, 1.3)])
    box(axes, 13.1, 0.85, 5.2, 0.85, "$L_\\mathrm{adv} = -\\log(1 + D(S(x), T(x)))$", COLOURS["L_adv"])
    arrow(axes, [(10.5, 0.85), (2.7, 0.85), (2.7, 3.9)], generator, dashed=True)
    arrow(axes, [(13.3, 6.5), (13.6, 6.5), (13.6, 8.1), (11.2, 8.1)])
    box(axes, 10.4, 8.1, 1.5, 0.62, "$\\mathrm{down}_s$", FLOW)
    arrow(axes, [(9.6, 8.1), (8.3, 8.1)])
    box(axes, 6.2, 8.1, 4.1, 0.85, "$L_R = D(\\mathrm{down}_s(T(x)), x_\\mathrm{lr})$", COLOURS["L_R"])
    arrow(axes, [(4.75, 5.25), (4.75, 7.65)])
    arrow(axes, [(4.1, 8.1), (2.7, 8.1), (2.7, 5.85)], generator, dashed=True)

    for y, colour, dashed, words in (
            (2.9, FLOW, False, "forward"), (2.3, student, False, "student phase: $S$ minimises $D$"),
            (1.7, generator, True, "generator phase: $G_s$ minimises $L_R + L_\\mathrm{adv}$")):
        arrow(axes, [(3.6, y), (4.6, y)], colour, dashed)
        text(axes, 4.8, y, words, size=9, ha="left")


def framework():
    """The picture as a matplotlib Figure, 8 inches wide."""
    figure = new_figure(WIDTH / 2, HEIGHT / 2)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    draw_images(axes)
    draw_networks(axes)
    draw_losses(axes)
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    return figure


def parse_arguments(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--output", default="figure/figure.png", help="the picture")
    return parser.parse_args(argv)


def main(args):
    save_figure(framework(), args.output, dpi=200)
    print(args.output)


if __name__ == "__main__":
    run_script(main, parse_arguments())
