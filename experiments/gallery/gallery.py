"""Makes the gallery: `python experiments/gallery/gallery.py` writes pools.svg and README.md here.

Nothing here says which layer pools over what. For one output of each registered layer the script
takes the gradient to every input, in training; the inputs that reach that output are coloured.
"""

from pathlib import Path
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np

from normlab.catalog import summary, variables
from normlab.variants import COSTS, VARIANTS

EXAMPLES, HEIGHT, WIDTH, CHANNELS = 4, 2, 2, 8
# The last channel of the first position of the first example: the corner of the block in front.
OUTPUT = (0, 0, 0, CHANNELS - 1)
# Sizes that suit a block this small; everything else is the layer's default.
FIELDS = {
    "ghost_batch_norm": {"ghost_batch_size": 2},
    "batch_group_norm": {"num_groups": 2},
    "group_norm": {"num_groups": 2},
    "evonorm_s0": {"num_groups": 2},
}

HERE = Path(__file__).parent
CELL, DEPTH = 15, (8, -6)
PANEL = (
    CHANNELS * CELL + EXAMPLES * DEPTH[0] + 42,
    HEIGHT * WIDTH * CELL - EXAMPLES * DEPTH[1] + 62,
)
COLUMNS = 5
MARGIN, HEADER = 16, 60
INK, FAINT, LINE = "#1f2430", "#5b6270", "#ffffff"
# Light, middle and dark: the top, the front and the side of the block.
PLAIN = ("#e8ebf0", "#dde1e8", "#cfd5de")
POOLED = ("#7db3e8", "#4f93d6", "#3878b8")
ITSELF = ("#f2a65a", "#e88b2e", "#c9721a")


def reaching_inputs(layer) -> np.ndarray:
    """Marks the inputs that the chosen output depends on, as (examples, positions, channels)."""
    reached = np.zeros((EXAMPLES, HEIGHT, WIDTH, CHANNELS), bool)
    key = jax.random.key(0)
    variables = layer.init(key, jnp.ones(reached.shape), use_running_average=False)

    def output(x):
        return layer.apply(variables, x, use_running_average=False)[OUTPUT]

    gradient = jax.jit(jax.grad(output))
    for seed in range(8):  # A maximum hides what is behind it for some inputs, not for all.
        x = jax.random.normal(jax.random.fold_in(key, seed), reached.shape)
        reached |= np.asarray(gradient(x)) != 0
    return reached.reshape(EXAMPLES, HEIGHT * WIDTH, CHANNELS)


def block(parent: ElementTree.Element, reached: np.ndarray) -> None:
    """Draws the three visible sides: front (first example), top (first position), last channel."""
    examples, positions, channels = reached.shape

    def cell(corner, across, down, shade, index):
        colours = POOLED if reached[index] else PLAIN
        if index == (0, 0, channels - 1):
            colours = ITSELF
        corner, across, down = np.array(corner), np.array(across), np.array(down)
        outline = (corner, corner + across, corner + across + down, corner + down)
        points = " ".join(f"{x:g},{y:g}" for x, y in outline)
        ElementTree.SubElement(parent, "polygon", points=points, fill=colours[shade], stroke=LINE)

    for n in reversed(range(examples)):
        for c in range(channels):
            x, y = c * CELL + (n + 1) * DEPTH[0], (n + 1) * DEPTH[1]
            cell((x, y), (CELL, 0), (-DEPTH[0], -DEPTH[1]), 0, (n, 0, c))
        for p in range(positions):
            x, y = channels * CELL + n * DEPTH[0], p * CELL + n * DEPTH[1]
            cell((x, y), DEPTH, (0, CELL), 2, (n, p, channels - 1))
    for p in range(positions):
        for c in range(channels):
            cell((c * CELL, p * CELL), (CELL, 0), (0, CELL), 1, (0, p, c))


def text(parent, words, x, y, size=12, colour=INK, weight="normal", anchor="start"):
    element = ElementTree.SubElement(
        parent,
        "text",
        {"x": f"{x:g}", "y": f"{y:g}", "font-size": f"{size}", "fill": colour}
        | {"font-weight": weight, "text-anchor": anchor},
    )
    element.text = words


def picture() -> ElementTree.Element:
    """One block for each registered layer, under its name."""
    rows = -(-len(VARIANTS) // COLUMNS)
    width, height = COLUMNS * PANEL[0] + 2 * MARGIN, rows * PANEL[1] + HEADER + MARGIN
    root = ElementTree.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {height}"}
        | {"width": f"{width}", "height": f"{height}"}
        | {"font-family": "system-ui, sans-serif", "role": "img"},
    )
    title = "What each layer pools over in training"
    ElementTree.SubElement(root, "title").text = title
    ElementTree.SubElement(root, "rect", width="100%", height="100%", fill="#ffffff")
    text(root, title, MARGIN, 28, 17, weight="bold")
    legend = MARGIN
    for colour, words in (
        (ITSELF[1], "one output"),
        (POOLED[1], "inputs it depends on through statistics"),
        (PLAIN[1], "inputs it does not depend on"),
    ):
        ElementTree.SubElement(
            root, "rect", x=f"{legend}", y="40", width="11", height="11", fill=colour
        )
        text(root, words, legend + 16, 50, 12, FAINT)
        legend += 40 + 6.3 * len(words)
    text(root, "Across: channels C. Down: positions H W. Back: examples N.", legend, 50, 12, FAINT)

    for place, (name, variant) in enumerate(VARIANTS.items()):
        row, column = divmod(place, COLUMNS)
        x, y = MARGIN + column * PANEL[0], HEADER + row * PANEL[1]
        text(root, variant.layer.__name__, x, y + 22, 13, weight="bold")
        text(root, variant.statistics, x, y + 37, 10.5, FAINT)
        panel = ElementTree.SubElement(
            root, "g", transform=f"translate({x} {y + 46 - EXAMPLES * DEPTH[1]})"
        )
        block(panel, reaching_inputs(variant.layer(**FIELDS.get(name, {}))))
    return root


def page() -> str:
    """The page: the picture, and what there is to say of each layer."""
    lines = [
        "# Gallery of layers",
        "",
        "Made by `python experiments/gallery/gallery.py`.",
        "",
        "![Blocks of examples, positions and channels; for each layer, the inputs that one output"
        " depends on](pools.svg)",
        "",
        f"Each block is an input of {EXAMPLES} examples, {HEIGHT} x {WIDTH} positions and "
        f"{CHANNELS} channels. Of one output, in its upper right corner in front, the inputs are "
        "coloured that it depends on in training, as the layer's own gradient tells it. In "
        "evaluation, layers that keep running statistics depend on the example alone.",
        "",
        "| cost | beside reading the input and writing the result |",
        "| --- | --- |",
        *(f"| {cost} | {meaning} |" for cost, meaning in COSTS.items()),
    ]
    for name, variant in VARIANTS.items():
        held = variables(variant)
        lines += [
            "",
            f"## {variant.layer.__name__}",
            "",
            summary(variant),
            "",
            f"    {variant.formula}",
            "",
            f"`{name}` in a study. Source: {variant.source}. "
            f"Statistics over: {variant.statistics}. "
            f"Learns: {', '.join(held.get('params', {})) or 'nothing'}. "
            f"Keeps: {', '.join(held.get('batch_stats', {})) or 'nothing'}. Cost: {variant.cost}.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    root = picture()
    ElementTree.indent(root)
    (HERE / "pools.svg").write_text(ElementTree.tostring(root, encoding="unicode") + "\n")
    (HERE / "README.md").write_text(page())
