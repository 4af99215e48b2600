"""Architectures as data: cells, the ones with a name, reading, writing and drawing them.

A DARTS cell is a list of (op, input) pairs, two for each intermediate node. Inputs 0 and 1 are the outputs of the two
cells before this one, 2, 3, ... the cell's own nodes; the output is the concatenation of the nodes in `concat`.

A NAS-Bench-101 cell is a directed acyclic graph with an op on each vertex: a 0/1 matrix, in which row i has a 1 in column j
if an edge goes from vertex i to vertex j > i, and the op of each vertex, first `input`, last `output`.

    python genotypes.py                               # the names
    python genotypes.py darts_v2                      # a cell as text
    python genotypes.py darts_v2 --draw cell.png      # ... and as a picture (.png, .pdf, .svg)
    python genotypes.py runs/x/genotype.json
    python genotypes.py archs.json:00004
"""

import argparse
import hashlib
import os
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

import cli
from cli import InputError, read_json

# The candidate operations of the DARTS space; the order is that of the columns of alpha.
PRIMITIVES = ["none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3",
              "dil_conv_5x5"]  # fmt: skip
OP_NAMES = PRIMITIVES + [
    "sep_conv_7x7",
    "conv_7x1_1x7",
]  # NASNet, PNASNet and AmoebaNet need two more

NODES = 4  # intermediate nodes of a searched cell
NUM_EDGES = sum(2 + node for node in range(NODES))  # 14: node i has edges from 2 + i earlier nodes

# NAS-Bench-101 (Ying et al. 2019): its ops, and the size of its cells
NASBENCH_OPS = ["conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3"]
MAX_VERTICES, MAX_EDGES = 7, 9


class Genotype(NamedTuple):
    """A normal and a reduction cell: [(op, input), ...], two pairs a node, and the nodes that are concatenated."""

    normal: list
    normal_concat: list
    reduce: list
    reduce_concat: list


class NASBenchCell(NamedTuple):
    """The one cell of a NAS-Bench-101 network: V rows of V zeros and ones, V ops. Every vertex is on a path from the first
    to the last."""

    matrix: list
    ops: list


# ---------------------------------------------------------------------------------------------------------------------
# Cells with a name: normal and reduction cell as op-input, two a node; then their concats where these are not 2-5.

SHORT_NAMES = {
    "max3": "max_pool_3x3", "avg3": "avg_pool_3x3", "skip": "skip_connect", "sep3": "sep_conv_3x3", "sep5": "sep_conv_5x5",
    "sep7": "sep_conv_7x7", "dil3": "dil_conv_3x3", "dil5": "dil_conv_5x5", "conv7x1_1x7": "conv_7x1_1x7",
}  # fmt: skip

CELLS = {
    "darts_v1": ("sep3-1 sep3-0 skip-0 sep3-1 skip-0 sep3-1 sep3-0 skip-2",
                 "max3-0 max3-1 skip-2 max3-0 max3-0 skip-2 skip-2 avg3-0"),
    "darts_v2": ("sep3-0 sep3-1 sep3-0 sep3-1 sep3-1 skip-0 skip-0 dil3-2",
                 "max3-0 max3-1 skip-2 max3-1 max3-0 skip-2 skip-2 max3-1"),
    "pdarts": ("skip-0 dil3-1 skip-0 sep3-1 sep3-1 sep3-3 sep3-0 dil5-4",
               "avg3-0 sep5-1 sep3-0 dil5-2 max3-0 dil3-1 dil3-1 dil5-3"),
    "pcdarts_c10": ("sep3-1 skip-0 sep3-0 dil3-1 sep5-0 sep3-1 avg3-0 dil3-1",
                    "sep5-1 max3-0 sep5-1 sep5-2 sep3-0 sep3-3 sep3-1 sep3-2"),
    "pcdarts_in1k": ("skip-1 sep3-0 sep3-0 skip-1 sep3-1 sep3-3 sep3-1 dil5-4",
                     "sep3-0 skip-1 dil5-2 max3-1 sep3-2 sep3-1 sep5-0 sep3-3"),
    "nasnet": ("sep5-1 sep3-0 sep5-0 sep3-0 avg3-1 skip-0 avg3-0 avg3-0 sep3-1 skip-1",
               "sep5-1 sep7-0 max3-1 sep7-0 avg3-1 sep5-0 skip-3 avg3-2 sep3-2 max3-1", [2, 3, 4, 5, 6], [4, 5, 6]),
    "pnasnet": ("sep5-0 max3-0 sep7-1 max3-1 sep5-1 sep3-1 sep3-4 max3-1 sep3-0 skip-1",
                "sep5-0 max3-0 sep7-1 max3-1 sep5-1 sep3-1 sep3-4 max3-1 sep3-0 skip-1", [2, 3, 4, 5, 6], [2, 3, 4, 5, 6]),
    "amoebanet": ("avg3-0 max3-1 sep3-0 sep5-2 sep3-0 avg3-3 sep3-1 skip-1 skip-0 avg3-1",
                  "avg3-0 sep3-1 max3-0 sep7-2 sep7-0 avg3-1 max3-0 max3-1 conv7x1_1x7-0 sep3-5", [4, 5, 6], [3, 4, 6]),
    "unnas_imagenet_cls": ("sep3-1 sep3-0 sep3-1 sep3-0 sep3-0 sep3-2 sep5-1 sep3-0",
                           "max3-0 skip-1 max3-0 dil5-2 max3-0 sep3-2 sep3-4 dil5-3"),
    "unnas_imagenet_rot": ("sep3-0 sep3-1 sep3-0 sep3-1 sep3-1 sep3-0 sep3-0 sep3-1",
                           "sep3-1 sep3-0 sep3-2 sep3-1 sep3-1 sep3-2 sep3-4 sep5-2"),
    "unnas_imagenet_col": ("skip-0 sep3-1 sep3-1 skip-0 sep3-0 sep3-3 sep3-0 sep3-2",
                           "max3-0 sep3-1 max3-0 sep3-1 max3-0 sep5-3 max3-0 sep3-4"),
    "unnas_imagenet_jig": ("sep3-0 sep3-1 sep3-0 sep3-1 sep3-0 sep3-3 sep3-1 sep5-0",
                           "sep5-0 sep3-1 sep3-0 sep3-1 sep3-0 sep3-1 sep5-0 sep3-1"),
    "unnas_imagenet22k_cls": ("sep3-1 skip-0 sep3-1 sep3-2 sep3-1 sep3-2 sep3-1 sep3-0",
                              "max3-0 max3-1 dil5-2 max3-0 dil5-3 dil5-2 dil5-4 dil5-3"),
    "unnas_imagenet22k_rot": ("sep3-0 sep3-1 sep3-0 sep3-1 sep3-0 sep3-1 sep3-0 sep3-1",
                              "max3-0 sep5-1 dil5-2 sep5-0 dil5-3 sep3-2 sep3-4 sep3-3"),
    "unnas_imagenet22k_col": ("sep3-0 sep3-1 sep3-0 sep3-1 sep3-2 sep3-1 sep3-3 sep3-0",
                              "max3-0 skip-1 dil5-2 sep3-0 sep3-3 sep3-0 sep3-4 sep5-1"),
    "unnas_imagenet22k_jig": ("sep3-0 sep3-1 sep3-0 sep3-1 sep3-1 sep3-0 sep3-0 sep3-4",
                              "sep5-0 skip-1 sep5-0 sep3-2 sep5-0 sep5-3 sep5-0 sep5-4"),
    "unnas_cityscapes_seg": ("skip-0 sep5-1 sep3-1 sep3-0 sep3-0 sep3-1 sep3-0 sep3-1",
                             "sep3-0 avg3-1 avg3-1 sep5-0 sep3-2 sep5-0 sep3-4 sep5-2"),
    "unnas_cityscapes_rot": ("sep3-1 sep3-0 sep3-2 sep3-1 sep3-0 sep3-3 sep3-1 sep3-0",
                             "max3-0 sep5-1 sep5-2 sep5-1 sep5-3 dil5-2 sep5-2 sep5-0"),
    "unnas_cityscapes_col": ("dil3-1 sep3-0 skip-0 sep5-2 dil3-3 skip-0 skip-0 sep3-1",
                             "avg3-1 avg3-0 avg3-1 avg3-0 avg3-1 avg3-0 avg3-1 skip-4"),
    "unnas_cityscapes_jig": ("dil5-1 sep5-0 sep3-0 sep3-1 sep3-0 sep3-2 sep3-0 dil5-1",
                             "avg3-0 skip-1 dil5-1 dil5-2 dil5-2 dil5-0 dil5-3 dil5-2"),
}  # fmt: skip


def named_cell(name: str) -> Genotype:
    """The genotype of a name in CELLS."""

    def pairs(text):
        return [
            (SHORT_NAMES[op], int(j)) for op, j in (pair.rsplit("-", 1) for pair in text.split())
        ]

    normal, reduce, *concats = CELLS[name]
    normal_concat, reduce_concat = concats or ([2, 3, 4, 5], [2, 3, 4, 5])
    return Genotype(pairs(normal), normal_concat, pairs(reduce), reduce_concat)


def parse_genotype(fields, where: str) -> Genotype:
    """A genotype from parsed JSON, checked; `where` opens the message of the InputError that anything malformed gets."""
    if not isinstance(fields, dict) or not set(Genotype._fields) <= set(fields):
        raise InputError(f"{where}: a genotype has the fields {', '.join(Genotype._fields)}")
    cells = []
    for cell in ("normal", "reduce"):
        pairs, concat = fields[cell], fields[f"{cell}_concat"]
        if not isinstance(pairs, list) or not pairs or len(pairs) % 2:
            count = len(pairs) if isinstance(pairs, list) else repr(pairs)
            raise InputError(
                f"{where}: {cell} needs two [op, input] pairs for each node, it has {count}"
            )
        for k, pair in enumerate(pairs):
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise InputError(f"{where}: {cell}: {pair!r} is not an [op, input] pair")
            op, j = pair
            node = 2 + k // 2
            if op not in OP_NAMES:
                raise InputError(
                    f"{where}: {cell}: unknown op {op!r}; known: {', '.join(OP_NAMES)}"
                )
            if type(j) is not int or j not in range(node):  # a bool is an int to isinstance
                raise InputError(
                    f"{where}: {cell}: node {node} takes inputs 0 to {node - 1}, not {j!r}"
                )
        last = 1 + len(pairs) // 2
        if not isinstance(concat, list) or not concat:
            raise InputError(
                f"{where}: {cell}_concat is empty; it lists the nodes that make the output"
            )
        if any(
            type(j) is not int or j not in range(2, last + 1) or concat.count(j) > 1 for j in concat
        ):
            raise InputError(
                f"{where}: {cell}_concat lists nodes from 2 to {last}, each once, not {concat}"
            )
        cells += [[(op, j) for op, j in pairs], list(concat)]
    return Genotype(*cells)


def parse_nasbench(entry, where: str) -> NASBenchCell:
    """A NAS-Bench-101 cell from parsed JSON. The rule of the benchmark: a square, strictly upper triangular matrix of zeros
    and ones; `input`, known ops, `output`; a path from first to last vertex; after pruning at most 7 vertices and 9 edges.
    What breaks it gets an InputError."""
    matrix, ops = (entry.get(key) for key in ("matrix", "ops"))
    if not isinstance(matrix, list) or not isinstance(ops, list):
        raise InputError(f'{where}: a NAS-Bench-101 cell has the lists "matrix" and "ops"')
    V = len(matrix)

    def is_row(row):
        return (
            isinstance(row, list)
            and len(row) == V
            and all(type(bit) is int and bit in (0, 1) for bit in row)
        )

    if V < 2 or not all(map(is_row, matrix)):
        raise InputError(f"{where}: the matrix must be square, of zeros and ones")
    if any(matrix[i][j] for i in range(V) for j in range(i + 1)):
        raise InputError(
            f"{where}: an edge leads to the same or an earlier vertex; the matrix must be upper triangular"
        )
    unknown = [op for op in ops[1:-1] if op not in NASBENCH_OPS]
    if len(ops) != V or ops[0] != "input" or ops[-1] != "output" or unknown:
        raise InputError(f"{where}: {V} ops are needed, first input, last output, between them {', '.join(NASBENCH_OPS)}; "
                         f"not {ops}")  # fmt: skip
    cell = prune(NASBenchCell([list(row) for row in matrix], list(ops)))
    if cell is None:
        raise InputError(f"{where}: no path leads from input to output")
    edges = sum(map(sum, cell.matrix))
    if len(cell.ops) > MAX_VERTICES or edges > MAX_EDGES:
        raise InputError(
            f"{where}: {len(cell.ops)} vertices and {edges} edges; at most {MAX_VERTICES} and {MAX_EDGES} fit"
        )
    return cell


def prune(cell: NASBenchCell) -> NASBenchCell | None:
    """Without the vertices that are on no path from input to output; None if there is no path."""
    matrix, V = np.array(cell.matrix), len(cell.ops)
    reaches = np.linalg.matrix_power(
        np.eye(V, dtype=bool) | (matrix > 0), V
    )  # [i, j]: whether a path leads from i to j
    keep = np.flatnonzero(reaches[0] & reaches[:, -1])
    return (
        NASBenchCell(matrix[np.ix_(keep, keep)].tolist(), [cell.ops[v] for v in keep])
        if len(keep)
        else None
    )


def nasbench_hash(cell: NASBenchCell) -> str:
    """The hash under which NAS-Bench-101 lists a cell, equal for isomorphic cells (32 hex digits)."""

    def md5(text):
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    matrix, V = cell.matrix, len(cell.ops)
    targets = [[j for j in range(V) if matrix[v][j]] for v in range(V)]
    sources = [[i for i in range(V) if matrix[i][v]] for v in range(V)]
    labels = [-1] + [NASBENCH_OPS.index(op) for op in cell.ops[1:-1]] + [-2]
    hashes = [md5(str((len(targets[v]), len(sources[v]), labels[v]))) for v in range(V)]
    for _ in range(V):
        hashes = [
            md5(
                "|".join("".join(sorted(hashes[u] for u in near[v])) for near in (sources, targets))
                + "|"
                + hashes[v]
            )
            for v in range(V)
        ]
    return md5(str(sorted(hashes)))


def parse_arch(entry, where: str) -> Genotype | NASBenchCell:
    """An architecture from an object of genotype.json or archs.json."""
    space = entry.get("space") if isinstance(entry, dict) else None
    if space == "nasbench101":
        return parse_nasbench(entry, where)
    if space != "darts":
        raise InputError(f'{where}: an architecture is an object with "space": "darts" and a "genotype", or '
                         '"space": "nasbench101", "matrix" and "ops"')  # fmt: skip
    return parse_genotype(entry.get("genotype"), where)


def load_archs(path) -> dict:
    """A list of architectures, archs.json: {id: architecture}, each checked, in the order of the file."""
    entries = read_json(path)
    if (
        not isinstance(entries, list)
        or not all(isinstance(e, dict) and "id" in e for e in entries)
        or not entries
    ):
        raise InputError(f'{path}: not a list of architectures, objects with an "id"')
    archs = {str(entry["id"]): parse_arch(entry, f"{path}:{entry['id']}") for entry in entries}
    if len(archs) < len(entries):
        raise InputError(f"{path}: two architectures have the same id")
    return archs


def to_entry(arch) -> dict:
    """The inverse of `parse_arch`."""
    if isinstance(arch, NASBenchCell):
        return {"space": "nasbench101", **arch._asdict()}
    return {"space": "darts", "genotype": arch._asdict()}


def load_arch(text: str) -> Genotype | NASBenchCell:
    """An architecture from the command line: a name (`darts_v2`), a file (`runs/x/genotype.json`), or
    `archs.json:ID` for one of a list. InputError says what is wrong with anything else."""
    if text in CELLS:
        return named_cell(text)
    if os.path.isfile(text):
        entry = read_json(text)
        if isinstance(entry, list):
            raise InputError(f"{text} is a list of architectures: add the id of one, {text}:ID")
        return parse_arch(entry, text)
    path, colon, arch_id = text.rpartition(":")
    if not colon or not os.path.isfile(path):
        raise InputError(f"no architecture {text!r}: neither a file nor one of {', '.join(CELLS)}")
    archs = load_archs(path)
    if arch_id not in archs:
        raise InputError(f"{path}: no architecture with the id {arch_id!r} among its {len(archs)}")
    return archs[arch_id]


def short_name(text: str) -> str:
    """What to call an architecture of the command line: its name or id, for runs/x/genotype.json x."""
    if not os.path.isfile(text):
        return text.rpartition(":")[2]
    path = Path(text).absolute()
    return (path.parent.name if path.name == "genotype.json" else path.stem).removeprefix("search_")


def to_text(genotype: Genotype | NASBenchCell) -> str:
    if isinstance(genotype, NASBenchCell):
        matrix, ops = genotype
        sources = [", ".join(str(i) for i in range(v) if matrix[i][v]) for v in range(len(ops))]
        return "\n".join(
            ["  0 = input", *(f"  {v} = {ops[v]}({sources[v]})" for v in range(1, len(ops)))]
        )
    lines = []
    for cell, (pairs, concat) in (("normal", genotype[:2]), ("reduce", genotype[2:])):
        lines.append(f"{cell} cell, output = concat of nodes {', '.join(map(str, concat))}")
        for node, (a, b) in enumerate(zip(pairs[::2], pairs[1::2]), start=2):
            lines.append(f"  {node} = {a[0]}({a[1]}) + {b[0]}({b[1]})")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing. Every node has a row, in which its rail runs to the right, and a column for its two ops. An op hangs on the
# rail of its input; the ops of a column run down into their node. No label can meet another, whatever the cell.

KIND_COLORS = {
    "sep": "#a6cee3",
    "dil": "#fdd49e",
    "conv": "#a6cee3",
    "max": "#d9d9d9",
    "avg": "#d9d9d9",
}  # else white
PITCH = 1.9  # column width, in box heights


def draw_cell(ax, pairs, concat, title):
    columns = list(zip(pairs[::2], pairs[1::2]))
    nodes = len(columns)
    stacked = {a[1] for a, b in columns if a[1] == b[1]}  # rows with two ops under one another
    tops = list(
        accumulate((-1.75 if row in stacked else -1.15 for row in range(nodes + 2)), initial=0.0)
    )
    x_out = nodes * PITCH + 0.5

    def wires(*paths):
        for color, width in (
            ("white", 5),
            ("#444444", 1.2),
        ):  # first a halo: what crosses does not join
            for xs, ys in paths:
                ax.plot(xs, ys, color=color, lw=width, solid_capstyle="butt", zorder=1)

    for row in range(nodes + 2):  # the rails, from the node to the last that reads it
        start = -0.35 if row < 2 else (row - 2) * PITCH + 1.72
        ends = [n * PITCH + 0.22 for n, (a, b) in enumerate(columns) if row in (a[1], b[1])] + [
            x_out
        ] * (row in concat)
        if ends:
            wires(([start, max(ends)], [tops[row]] * 2))
        name = ("$c_{k-2}$", "$c_{k-1}$")[row] if row < 2 else str(row)
        box = dict(
            boxstyle="circle,pad=0.25" if row > 1 else "round,pad=0.25",
            fc="#fff7bc",
            ec="#444444",
            lw=1,
        )
        ax.text(
            start - (0.25 if row < 2 else 0),
            tops[row],
            name,
            ha="center",
            va="center",
            fontsize=9,
            bbox=box,
            zorder=4,
        )
    for n, ops in enumerate(columns):
        x = n * PITCH
        second = (
            0.6 if ops[0][1] == ops[1][1] else 0
        )  # the second of two ops on one rail hangs lower
        ys = [tops[ops[0][1]] - 0.45, tops[ops[1][1]] - 0.45 - second]
        path_xs = [
            x + 0.22,
            x + 0.22,
            x + 1.72,
            x + 1.72,
        ]  # rail, down, through the box, down to the node
        wires(*((path_xs, [tops[row], y, y, tops[n + 2]]) for (_, row), y in zip(ops, ys)))
        for (op, row), y in zip(ops, ys):
            ax.plot(x + 0.22, tops[row], "o", color="#444444", ms=3, zorder=2)
            color = KIND_COLORS.get(op.split("_")[0], "white")
            box = dict(boxstyle="round,pad=0.3", fc=color, ec="#444444", lw=0.8)
            ax.text(
                x + 0.96,
                y,
                op.replace("_", " "),
                ha="center",
                va="center",
                fontsize=6.8,
                bbox=box,
                zorder=3,
            )
    ys = [tops[row] for row in concat]
    ax.plot(
        [x_out, x_out],
        [max(ys) + 0.2, min(ys) - 0.2],
        color="#444444",
        lw=4,
        solid_capstyle="butt",
        zorder=3,
    )
    ax.text(
        x_out + 0.15,
        (max(ys) + min(ys)) / 2,
        "concat",
        rotation=90,
        ha="left",
        va="center",
        fontsize=9,
    )
    ax.set(xlim=(-1, x_out + 0.6), ylim=(tops[nodes + 1] - 0.5, 0.6))
    ax.set_title(title, fontsize=10)
    ax.axis("off")
    return x_out + 1.6, -tops[nodes + 1] + 1.1


def draw(genotype: Genotype, path, title: str = ""):
    """Draws the normal and the reduction cell side by side; the ending of `path` gives the format."""
    import matplotlib.figure  # here, so that everything else works without matplotlib

    figure = matplotlib.figure.Figure()
    axes = figure.subplots(1, 2)
    cells = zip(axes, (genotype[:2], genotype[2:]), ("normal", "reduction"))
    sizes = [draw_cell(ax, *cell, f"{title} {name} cell".strip()) for ax, cell, name in cells]
    figure.set_size_inches(0.62 * sum(w for w, _ in sizes), 0.62 * max(h for _, h in sizes))
    figure.subplots_adjust(0.01, 0.02, 0.99, 0.92, wspace=0.04)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # an unknown ending, a missing folder
        raise InputError(f"cannot draw to {path}: {error}") from None


LINES = [
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#e69f00", "v"),
    ("#56b4e9", "P"),
]


def draw_history(histories: dict, path):
    """How searches went, {name: meta.history of its genotype.json}: a row for each cell, by epoch the entropy of the alphas
    and the numbers of skip connections and convolutions of the cell that would be derived."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey="col")
    columns = {
        "entropy": "entropy of the alphas",
        "skips": "skip connections",
        "convs": "convolutions",
    }
    for row, cell in enumerate(("normal", "reduction")):
        for ax, (key, title) in zip(axes[row], columns.items()):
            for k, (name, history) in enumerate(histories.items()):
                color, marker = LINES[k % len(LINES)]
                style = dict(
                    color=color,
                    marker=marker,
                    ms=5,
                    ls=["-", "--"][k // len(LINES) % 2],
                    label=name,
                )
                apart = (
                    0 if key == "entropy" else 0.08 * (k - (len(histories) - 1) / 2)
                )  # equal counts side by side
                ax.plot(
                    [line["epoch"] for line in history],
                    [line[key][row] + apart for line in history],
                    **style,
                )
            ax.set_title(f"{cell} cell: {title}", fontsize=10)
            ax.grid(alpha=0.3)
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.ticklabel_format(useOffset=False)
            if key != "entropy":
                ax.set_ylim(-0.6, 8.6)
    for ax in axes[1]:
        ax.set_xlabel("epoch of the search")
    axes[0, 0].set_ylim(top=1.0 + 0.05 * (1.0 - axes[0, 0].get_ylim()[0]))
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9
    )
    figure.savefig(path, dpi=150)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Print a cell as text, and draw it.")
    parser.add_argument(
        "arch",
        nargs="?",
        help="a name, a genotype.json, or archs.json:ID (default: list the names)",
    )
    parser.add_argument("--draw", metavar="FILE", help="also draw it; .png, .pdf or .svg")
    return parser.parse_args(argv)


def main(args):
    if args.arch is None:
        print("\n".join(CELLS))
        return
    genotype = load_arch(args.arch)
    print(to_text(genotype))
    if isinstance(genotype, NASBenchCell):
        print(f"NAS-Bench-101 hash {nasbench_hash(genotype)}")
    if args.draw and isinstance(genotype, NASBenchCell):
        raise InputError(f"--draw {args.draw}: only DARTS cells can be drawn")
    if args.draw:
        draw(genotype, args.draw, title=Path(args.arch).name if args.arch in CELLS else "")


if __name__ == "__main__":
    cli.run(main, parse_args)
