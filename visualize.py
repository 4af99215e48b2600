"""Pictures: a cell, history and weights of a search, predictions of a network trained on seg.

python visualize.py darts_v2 --out cell.pdf      # any cell, as .png, .pdf or .svg
python visualize.py runs/search_shapes_rot_s0    # a search: cell.png, alphas.png and weights.png
python visualize.py runs/train_shapes_seg_x_s0   # a training on seg: predictions.png
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib import colormaps, cycler
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

import cli
import genotypes

# Okabe and Ito's colours, which the colour-blind can tell apart, without the pale yellow
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Draw a cell, a search or predictions.")
    add = parser.add_argument
    add("what", help="a cell (name, file or archs.json:ID), or the folder of a run")
    add("--out", metavar="FILE", help="where to draw the cell or the predictions")
    add("--data", metavar="PATH", help="of a training's data set, if it has moved")
    add("--images", type=cli.at_least(1, int), default=4, help="to predict (default: %(default)s)")
    return parser.parse_args(argv)


# --------------------------------------------------------------------------------------------------
# Cells. The output of each input and of each node runs along a rail to the right. In the column of
# a node its two edges leave their rails, pass their ops and run down to where its own rail starts.

COLUMN = 1.9  # width of a column; all lengths are in units of 0.62 inches
TAP, OP, NODE = 0.22, 0.96, 1.72  # in a column: where its edges leave the rails, its ops, its node
DROP, SECOND = 0.45, 0.6  # from a rail to an op; from there to the other op, if on the same rail
INK = "#444444"
OP_COLORS = {"dil": "#fdd49e", "conv": "#a6cee3", "pool": "#d9d9d9"}  # the first in an op's name


def draw_graph(ax, pairs, concat):
    """Draws one cell, its upper left corner at (-1, 0.6). Returns its width and height."""

    def line(xs, ys, color=INK, lw=1.2, zorder=1):
        ax.plot(xs, ys, color=color, lw=lw, zorder=zorder, solid_capstyle="butt")

    def label(x, y, text, size, shape, color):
        box = dict(boxstyle=shape, fc=color, ec=INK, lw=size / 9)
        ax.text(x, y, text, ha="center", va="center", fontsize=size, bbox=box, zorder=4)

    columns = list(zip(pairs[::2], pairs[1::2]))  # for each node, its two edges (op, rail)
    node_x = [n * COLUMN + NODE for n in range(len(columns))]
    concat_x = len(columns) * COLUMN + 0.5
    crowded = {a for (_, a), (_, b) in columns if a == b}  # rails that take more room
    gaps = [1.15 + SECOND * (rail in crowded) for rail in range(1 + len(columns))]
    rail_y = -np.cumsum([0, *gaps])

    for rail, (x, y) in enumerate(zip([-0.6, -0.6, *node_x], rail_y)):
        ends = [n * COLUMN + TAP for n, (a, b) in enumerate(columns) if rail in (a[1], b[1])]
        ends += [concat_x] if rail in concat else []
        line([x, max(ends, default=x)], [y, y])
        name, shape = (f"$c_{{k-{2 - rail}}}$", "round") if rail < 2 else (str(rail), "circle")
        label(x, y, name, 9, f"{shape},pad=0.25", "#fff7bc")

    for n, edges in enumerate(columns):
        tap, x, y = n * COLUMN + TAP, node_x[n], rail_y[2 + n]
        op_y = [rail_y[rail] - DROP for _, rail in edges]
        op_y[1] -= SECOND * (edges[0][1] == edges[1][1])
        line([x, x], [max(op_y), y], "white", lw=5)  # it crosses rails that it does not join
        for (op, rail), down in zip(edges, op_y):
            ax.plot(tap, rail_y[rail], "o", color=INK, ms=3, zorder=2)
            line([tap, tap, x, x], [rail_y[rail], down, down, y])
            color = next((OP_COLORS[kind] for kind in OP_COLORS if kind in op), "white")
            label(n * COLUMN + OP, down, op.replace("_", " "), 6.8, "round,pad=0.3", color)

    top, bottom = rail_y[min(concat)], rail_y[max(concat)]
    line([concat_x, concat_x], [top + 0.2, bottom - 0.2], lw=4, zorder=3)
    ax.text(concat_x + 0.15, (top + bottom) / 2, "concat", rotation=90, va="center", fontsize=9)
    return concat_x + 1.6, 1.1 - rail_y[-1]


def draw_cell(genotype: genotypes.Genotype, path, title: str = ""):
    """Draws the normal and the reduction cell side by side; the ending of `path` is the format."""
    figure = Figure()
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, name in zip(axes, ("normal", "reduction")):
        ax.set_title(f"{title} {name} cell".strip(), fontsize=10)
        ax.axis("off")
    sizes = draw_graph(axes[0], *genotype[:2]), draw_graph(axes[1], *genotype[2:])
    width, height = np.max(sizes, axis=0)
    axes[0].set(xlim=(-1, width - 1), ylim=(0.6 - height, 0.6))
    figure.set_size_inches(0.62 * 2 * width, 0.62 * height)
    figure.subplots_adjust(0.01, 0.02, 0.99, 0.92, wspace=0.04)
    cli.save_figure(figure, path)


def draw_history(histories: dict, path):
    """Draws by epoch the entropy of the alphas (1: uniform) and the counts of the cell derived from
    them, equal ones side by side. histories: {title: meta.history of a genotype.json}"""
    names = {"entropy": "alpha entropy", "skips": "skip connections", "convs": "convolutions"}
    styles = cycler(ls=["-", "--"]) * cycler(color=PALETTE, marker=list("os^DvPX*"))
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey="col")
    for i, cell in enumerate(("normal", "reduction")):
        for ax, (key, name) in zip(axes[i], names.items()):
            ax.set_prop_cycle(styles)
            for k, (title, history) in enumerate(histories.items()):
                shift = 0 if key == "entropy" else 0.08 * (k - (len(histories) - 1) / 2)
                values = [epoch[key][i] + shift for epoch in history]
                ax.plot([epoch["epoch"] for epoch in history], values, ms=5, label=title)
            ax.set_title(f"{cell} cell: {name}", fontsize=10)
            ax.grid(alpha=0.3)
            ax.locator_params(axis="x", integer=True)
            ax.ticklabel_format(useOffset=False)
    bottom, _ = axes[0, 0].get_ylim()
    for ax, limits in zip(axes[0], [(bottom, 1.05 - 0.05 * bottom), (-0.6, 8.6), (-0.6, 8.6)]):
        ax.set_ylim(limits)  # a cell has eight edges
    axes[1, 1].set_xlabel("epoch of the search")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    cli.save_figure(figure, path)


def draw_weights(genotype: genotypes.Genotype, epoch: dict, path, title: str = ""):
    """Draws the weights of the ops on each edge and, with partial channels, of the edges, softmax
    of the alphas and betas of an epoch of meta.history; frames are what the cell took."""
    edges = [(j, node) for node in range(2, 2 + genotypes.NODES) for j in range(node)]
    figure = Figure(figsize=(12, 7), layout="constrained")
    for i, (ax, cell) in enumerate(zip(figure.subplots(1, 2), ("normal", "reduction"))):
        weights = softmax(epoch["alphas"][i])  # (14, 8)
        columns = [op.replace("_", " ") for op in genotypes.PRIMITIVES]
        if epoch.get("betas"):
            of_nodes = np.split(np.array(epoch["betas"][i]), [2, 5, 9])
            weights = np.column_stack([weights, np.concatenate([*map(softmax, of_nodes)])])
            columns.append("edge")
        ax.imshow(weights**0.5, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
        for (row, column), weight in np.ndenumerate(weights):
            ax.text(column, row, f"{weight:.2f}", ha="center", va="center", fontsize=7.5)
        for k, (op, j) in enumerate(genotype[2 * i]):
            corner = genotypes.PRIMITIVES.index(op) - 0.5, edges.index((j, 2 + k // 2)) - 0.5
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec="#d55e00", lw=2, zorder=3))
        ax.set_xticks(range(len(columns)), columns, rotation=35, ha="right", fontsize=8)
        ax.set_yticks(range(len(edges)), [f"{j} to {node}" for j, node in edges])
        ax.set_title(f"{title} {cell} cell".strip(), fontsize=10)
    cli.save_figure(figure, path)


def softmax(x):
    exp = np.exp(x - np.max(x, -1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def draw_predictions(run: Path, path, data_path=None, images: int = 4):
    """Draws image, mask and prediction of a finished seg training for a few evaluation images."""
    import torch
    from torchvision.datasets import Cityscapes

    import data
    import model_eval
    import pretext
    import runs

    result = genotypes.read_result(run / "result.json")
    if result["task"] != "seg":
        raise cli.InputError(f"{run} was trained on {result['task']}; only seg predicts each pixel")
    _, checkpoint = runs.load_checkpoint(run)
    genotype, data_path = genotypes.parse_arch(result, run), data_path or result["args"]["data"]
    identity = result["identity"] | {"genotype": genotypes.to_text(genotype).replace("\n", " ")}
    runs.check_identity(run / "result.json", identity, checkpoint["identity"])
    saved = argparse.Namespace(**checkpoint["identity"])
    _, test = data.load(saved.dataset, data_path, saved.size, saved.limit)
    task = pretext.make_task("seg", test, saved.size, saved.stem, saved.layers, "cpu")
    arch = genotype, saved.width, saved.layers, saved.stem
    network = model_eval.build_network(*arch, **task.network_args)
    network.load_state_dict(checkpoint["network"])
    network.eval().requires_grad_(False)
    colors = colormaps["tab20"].colors
    if saved.dataset == "cityscapes":  # its own colours, in the order of the train ids
        colors = np.array([c.color for c in Cityscapes.classes if 0 <= c.train_id < 255]) / 255
    colors = np.resize(colors, (256, 3))  # RGB of each value of a mask
    colors[255] = 0  # no class
    chosen, seen = torch.linspace(0, len(test) - 1, min(images, len(test))).long(), set()
    figure = Figure(figsize=(9, 2.4 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    for row, batch in zip(axes, data.batches(test, task.view, 1, "cpu", chosen)):
        x, _ = task.prepare(*batch, train=False)
        prediction = network(x).argmax(1)[0, :-1, :-1].numpy()  # (H, W), without the padding
        image, mask = batch[0][0].permute(1, 2, 0).numpy(), batch[1][0].numpy()  # (H, W, 3), (H, W)
        seen |= {*np.unique(mask), *np.unique(prediction)}
        for ax, picture in zip(row, (image, colors[mask], colors[prediction])):
            ax.imshow(picture)
            ax.set_axis_off()
    titles = "image", "mask", f"prediction, mIoU {result['final']:.1f} over all"
    for ax, title in zip(axes[0], titles):
        ax.set_title(title, fontsize=10)
    handles = [Patch(color=colors[c], label=test.mask_classes[c]) for c in sorted(seen - {255})]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    cli.save_figure(figure, path)


def main(args):
    run = Path(args.what)
    if Path(args.out or "cell.png").suffix not in (".png", ".pdf", ".svg"):
        raise cli.InputError(f"{args.out} is none of .png, .pdf and .svg")
    if args.what in genotypes.CELLS or not run.is_dir():
        genotype, title = genotypes.load_arch(args.what), genotypes.short_name(args.what)
        if isinstance(genotype, genotypes.NASBenchCell):
            raise cli.InputError(f"{args.what} is of NAS-Bench-101; only DARTS cells are drawn")
        out = args.out or f"{title}.png"
        draw_cell(genotype, out, f"{title}:")
    elif (run / "result.json").exists():
        out = args.out or run / "predictions.png"
        draw_predictions(run, out, args.data, args.images)
    else:
        search, out = genotypes.read_search(run / "genotype.json"), args.out or run / "cell.png"
        title = "{task} on {dataset}, seed {seed}".format(**search["meta"])
        genotype, last = genotypes.parse_arch(search, str(run)), search["meta"]["history"][-1]
        draw_cell(genotype, out, f"{title}:")
        draw_history({title: search["meta"]["history"]}, run / "alphas.png")
        print(run / "alphas.png")
        if last["alphas"]:
            draw_weights(genotype, last, run / "weights.png", f"{title}:")
            print(run / "weights.png")
    print(out)


if __name__ == "__main__":
    cli.run(main, parse_args)
