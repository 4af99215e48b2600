"""Pictures: a cell, history and weights of a search, predictions of a network, the tasks.

python visualize.py darts_v2 --out cell.pdf      # any cell, as .png, .pdf or .svg
python visualize.py runs/search_shapes_rot_s0    # a search: cell.png, alphas.png and weights.png
python visualize.py runs/train_x                 # a training: predictions.png, of evaluation images
python visualize.py runs/train_x a.jpg b.jpg     # of image files; with --json as data, for scripts
python visualize.py --tasks rot col jig --dataset folder --data my_photos/ --out tasks.png
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

import cli
import numpy as np
from matplotlib import colormaps, cycler
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy.special import softmax

import genotypes

# Okabe and Ito's colours, which the colour-blind can tell apart, without the pale yellow
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"]


def parse_args(argv=None):
    import data  # here, as report.py draws without torch
    import pretext

    parser = argparse.ArgumentParser(description="Draw a cell, a search, predictions or tasks.")
    add = parser.add_argument
    add("what", nargs="?", help="a cell, as train.py's --arch, or the folder of a run")
    add("files", nargs="*", metavar="IMAGE", help="to predict (default: some to evaluate on)")
    add("--out", metavar="FILE", help="where to draw")
    add("--json", action="store_true", help="print predictions, of all evaluation images, as JSON")
    add("--tasks", nargs="+", choices=list(pretext.TASKS), help="draw their inputs and targets")
    add("--images", type=cli.at_least(1, int), default=4, help="number (default: %(default)s)")
    data.add_arguments(parser.add_argument_group("data for --tasks; --data if a run's has moved"))
    args = parser.parse_args(argv)
    if not args.what and not args.tasks:
        parser.error("what to draw?")
    return args


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
        ax.set_title(cli.plain(f"{title} {name} cell".strip()), fontsize=10)
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
    dashes = ["-", "--", ":", "-.", (0, (5, 5)), (0, (1, 4))]
    styles = cycler(ls=dashes) * cycler(color=PALETTE, marker=list("os^DvPX*"))
    figure = Figure(figsize=(9, 4.5 + 0.08 * len(histories)), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey="col")
    for i, cell in enumerate(("normal", "reduction")):
        for ax, (key, name) in zip(axes[i], names.items()):
            ax.set_prop_cycle(styles)
            for k, (title, history) in enumerate(histories.items()):
                shift = min(0.08, 0.8 / len(histories)) * (k - (len(histories) - 1) / 2)
                values = [epoch[key][i] + shift * (key != "entropy") for epoch in history]
                ax.plot([epoch["epoch"] for epoch in history], values, ms=5, label=title)
            ax.set_title(f"{cell} cell: {name}", fontsize=10)
            ax.grid(alpha=0.3)
            ax.locator_params(axis="x", integer=True)
            ax.ticklabel_format(useOffset=False)
    bottom, _ = axes[0, 0].get_ylim()
    for ax, limits in zip(axes[0], [(bottom, 1.05 - 0.05 * bottom), (-0.6, 8.6), (-0.6, 8.6)]):
        ax.set_ylim(limits)  # a cell has eight edges
    axes[1, 1].set_xlabel("epoch of the search")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    cli.save_figure(figure, path)


def draw_weights(genotype: genotypes.Genotype, epoch: dict, path, title: str = ""):
    """Draws the weights of the ops on each edge and, with partial channels, of the edges, softmax
    of the alphas and betas of an epoch of meta.history; frames are what the cell took."""
    edges = [(j, node) for node in range(2, 2 + genotypes.NODES) for j in range(node)]
    figure = Figure(figsize=(12, 7), layout="constrained")
    for i, (ax, cell) in enumerate(zip(figure.subplots(1, 2), ("normal", "reduction"))):
        weights = softmax(epoch["alphas"][i], -1)  # (14, 8)
        columns = [op.replace("_", " ") for op in genotypes.PRIMITIVES]
        if epoch.get("betas"):
            of_nodes = [softmax(betas) for betas in genotypes.by_node(epoch["betas"][i])]
            weights = np.column_stack([weights, np.hstack(of_nodes)])
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


# --------------------------------------------------------------------------------------------------
# Tasks and predictions: a row for each image, of (picture, text, colour of the text)


def draw_rows(rows, classes, path):
    """Classes of pixels have Cityscapes' colours where they have its names, and a legend. Rows of
    one picture are set four side by side."""
    from torchvision.datasets import Cityscapes  # here, as it takes seconds

    own = {c.name: np.array(c.color) / 255 for c in Cityscapes.classes}
    colors, seen = np.resize(colormaps["tab20"].colors, (256, 3)), set()
    for k, name in enumerate(classes[:255]):
        colors[k] = own.get(name, colors[k])
    colors[255] = 0  # no class
    if len(rows[0]) == 1:
        rows = [sum(rows[k : k + 4], []) for k in range(0, len(rows), 4)]
    if len(rows) > 100:
        raise cli.InputError(f"{path}: a picture has at most 100 rows, not {len(rows)}")
    columns = max(map(len, rows))
    width = min(max(1.5, 7 / columns), 2.3)
    cells = sum(rows, [])
    height = max(width * len(p) / len(p[0]) + 0.12 * text.count("\n") for p, text, _ in cells)
    figure = Figure((width * columns, (height + 0.2) * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for k, row in enumerate(rows):
        for ax, (picture, text, color) in zip(axes[k], row):
            if picture.ndim == 2:
                seen |= {*np.unique(picture)} - {255}
                picture = colors[picture]
            ax.imshow(picture)
            ax.set_title(cli.plain(text), fontsize=7, color=color, pad=2)
    names = dict(enumerate(classes))
    handles = [Patch(color=colors[k], label=cli.plain(names.get(k, f"{k}"))) for k in sorted(seen)]
    style = dict(loc="outside lower center", ncols=1 + columns, fontsize=7, frameon=False)
    figure.legend(handles=handles, **style)
    cli.save_figure(figure, path, bbox_inches="tight")


def captioned(pictures, texts):
    """The pictures, the last ones with texts, in the colour of their ✓ or ✗."""
    colors = {"✓": PALETTE[2], "✗": PALETTE[1]}
    texts = [""] * (len(pictures) - len(texts)) + texts
    return [(p.cpu().numpy(), text, colors.get(text[:1], INK)) for p, text in zip(pictures, texts)]


def draw_tasks(args, path):
    """A few images, and beside each what the network of a task gets in training and has to say."""
    import torch

    import data
    import ops
    import pretext

    torch.manual_seed(0)
    limit, rows, classes = args.limit or max(2, args.images), [], []
    train, _ = data.load(args.dataset, args.data, args.size, limit, workers=0)
    size, some = args.size or train.size, torch.arange(min(args.images, len(train)))
    for name in args.tasks:
        task = pretext.make_task(name, train, size, ops.default_stem(size), 1, "cpu")
        for i, batch in enumerate(data.batches(train, task.view, 1, "cpu", some, seed=0)):
            x, y = task.prepare(*batch, train=True)
            pictures = task.show(x, y)
            classes = task.classes if pictures[-1].dim() == 2 else classes
            texts = ["input", "target"] if y.dim() > 1 else [task.classes[k] for k in y.tolist()]
            if i == len(rows):
                rows.append(captioned([batch[0][0].permute(1, 2, 0)], ["image"]))
            rows[i] += captioned(pictures, [f"{name}: {text}" for text in texts])
    draw_rows(rows, classes, path)


def predict(network, task, result, args):
    """Of image files, or of a run's evaluation images, all for --json and else a few: yields the
    name of each, itself, its inputs, targets (task.ignored where unknown) and logits."""
    import torch

    import data
    import image_files
    import utils

    saved, device = argparse.Namespace(**result["identity"]), task.mean.device
    view, batch_size, some = task.view, saved.batch_size, None
    if args.files:
        crop = image_files.CROPS.get(saved.dataset, image_files.square_crop)
        names = [os.fsencode(name) for name in args.files]
        test = image_files.ImageFiles("", names, lambda W, H, *_: crop(W, H, task.view, None))
        test.whites = result["images"]["whites"] or {}
        view, batch_size = view._replace(targets=None), 1
    else:
        path = args.data or result["args"]["data"]
        train, test = data.hold_out(*data.load(saved.dataset, path, saved.size, saved.limit))
        if data.split_hash(train, test) != saved.split:
            raise cli.InputError(f"--data {path}: not the images that this network was trained on")
        if not args.json:
            some = torch.linspace(0, len(test) - 1, min(args.images, len(test))).long()
    autocast, _ = utils.precision(device, saved.amp)
    for images, targets, index in data.batches(test, view, batch_size, device, some):
        if args.files and task.targets == "masks":
            targets = torch.full_like(images[:, 0], task.ignored)
        x, y = task.prepare(images, targets, index, train=False)
        if args.files and task.classifies_inputs:  # the image as it is, of any class
            x, y = x[:1], torch.tensor([task.ignored], device=device)
        with torch.inference_mode(), autocast:
            logits = network(x).float()
        parts = (part.chunk(len(images)) for part in (images, x, y, logits))
        for k, *part in zip(index.tolist(), *parts):
            yield os.fsdecode(test.names[k]), *part


def describe(task, y, logits) -> list:
    """The predictions for an image as data."""
    if y.dim() > 1:
        hits = (logits.argmax(1) == y)[y != task.ignored]
        return [{"accuracy": hits.double().mean().item() if len(hits) else None}]
    records = []
    for target, p, said in zip(y.tolist(), logits.softmax(1), logits.argmax(1).tolist()):
        best = {task.classes[k]: p[k].item() for k in p.argsort(descending=True)[:5].tolist()}
        records.append({"classes": best})
        if target != task.ignored:
            records[-1] |= {"truth": task.classes[target], "correct": said == target}
    return records


def caption(record):
    """The text to a prediction."""
    if "classes" not in record:
        share = record["accuracy"]
        return "prediction" if share is None else f"prediction, {share:.0%} right"
    lines = [f"{name}: {p:.0%}" for name, p in record["classes"].items() if p >= 0.01][:3]
    mark = {None: "", True: "✓ ", False: "✗ "}[record.get("correct")]
    truth = f"\ntruth: {record['truth']}" if mark == "✗ " else ""
    return mark + "\n".join(lines) + truth


def draw_predictions(run: Path, path, args):
    """The images, for classes of pixels the truth, and what predictions make of the inputs. Returns
    the predictions as data; with --json it draws nothing."""
    import torch

    import model_eval
    import utils

    network, task = model_eval.load_network(run, "cuda" if torch.cuda.is_available() else "cpu")
    result = genotypes.read_result(run / "result.json")
    meter, rows, records = utils.Meter(task), [], []
    for name, image, x, y, logits in predict(network, task, result, args):
        records.append({"image": name, "predictions": describe(task, y, logits)})
        if not args.files:
            meter.update(task.loss(logits, y), logits, y)
        if args.json:
            continue
        texts, said = map(caption, records[-1]["predictions"]), logits.argmax(1)
        row = [] if task.targets == "labels" else captioned([image[0].permute(1, 2, 0)], ["image"])
        if y.dim() > 1 and (y != task.ignored).any():
            row += captioned(task.show(x, y)[-1:], ["truth"])
        answer = task.show(task.undo(x, said), said)
        rows.append(row + captioned(answer[-1:] if y.dim() > 1 else answer, [*texts]))
    if not args.json:
        draw_rows(rows, task.classes, path)
    return {**meter.result(), "images": records}


def main(args):
    out = args.out
    if Path(out or "cell.png").suffix not in (".png", ".pdf", ".svg"):
        raise cli.InputError(f"{out} is none of .png, .pdf and .svg")
    run = Path(args.what or "")
    trained = os.path.isfile(f"{run}/result.json")
    if (args.files or args.json) and not trained:
        raise cli.InputError(f"{run}: no result.json, so no finished training, so no predictions")
    if args.tasks:
        out = out or "tasks.png"
        draw_tasks(args, out)
    elif trained:
        out = out or run / "predictions.png"
        with contextlib.redirect_stdout(sys.stderr):  # also what reading the images says
            found = draw_predictions(run, out, args)
        if args.json:
            return print(json.dumps(found, indent=1))
    elif args.what in genotypes.CELLS or not os.path.isdir(run):
        genotype, title = genotypes.load_arch(args.what), genotypes.short_name(args.what)
        if isinstance(genotype, genotypes.NASBenchCell):
            raise cli.InputError(f"{args.what} is of NAS-Bench-101; only DARTS cells are drawn")
        out = out or f"{title}.png"
        draw_cell(genotype, out, f"{title}:")
    elif not os.path.exists(run / "genotype.json"):
        raise cli.InputError(f"{run}: neither a finished training nor a search")
    else:
        search, out = genotypes.read_search(run / "genotype.json"), out or run / "cell.png"
        title = genotypes.search_title(search["meta"])
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
