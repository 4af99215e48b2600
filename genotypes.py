"""Architectures as data: published cells, and reading, checking and writing cells as JSON.

A DARTS cell is a list of (op, input) pairs, two for each intermediate node. Inputs 0 and 1 are the
outputs of the two cells before this one, 2, 3, ... its own nodes; `concat` are the nodes whose
concatenation is its output. A NAS-Bench-101 cell is a directed acyclic graph with an op on each
vertex: a 0/1 matrix with a 1 in row i and column j > i for an edge from vertex i to vertex j, and
the ops, first `input`, last `output`.

    python genotypes.py                        # the names of the published cells
    python genotypes.py darts_v2               # a cell as text; visualize.py draws it
"""

import argparse
import ast
import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import cli
import numpy as np
from cli import NUMBER, InputError, check_shape, read_json

# The candidate operations of the DARTS space, in the order of the columns of alpha
PRIMITIVES = ["none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"]
PRIMITIVES += ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
OP_NAMES = PRIMITIVES + ["sep_conv_7x7", "conv_7x1_1x7"]  # NASNet, PNASNet, AmoebaNet need two more

NODES = 4  # intermediate nodes of a searched cell
EDGES_OF_NODES = [2 + node for node in range(NODES)]  # that enter each: from all earlier ones
NUM_EDGES = sum(EDGES_OF_NODES)  # 14

NASBENCH_OPS = ["conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3"]  # Ying et al. 2019
MAX_VERTICES, MAX_EDGES = 7, 9  # of a cell in NAS-Bench-101


class Genotype(NamedTuple):
    """A normal and a reduction cell: [(op, input), ...], two pairs a node, and [node, ...]."""

    normal: list
    normal_concat: list
    reduce: list
    reduce_concat: list


class NASBenchCell(NamedTuple):
    """The cell of a NAS-Bench-101 network: a V x V matrix of zeros and ones, and V ops."""

    matrix: list
    ops: list


def by_node(values) -> list:
    """What the 14 edges have, of the edges that enter each node."""
    return np.split(values, np.cumsum(EDGES_OF_NODES)[:-1])


# --------------------------------------------------------------------------------------------------
# Published cells: the op-input pairs of the normal and of the reduction cell, then the nodes that
# each concatenates where these are not 2 to 5.

# fmt: off
SHORT_NAMES = {
    "max3": "max_pool_3x3", "avg3": "avg_pool_3x3", "skip": "skip_connect", "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5", "sep7": "sep_conv_7x7", "dil3": "dil_conv_3x3", "dil5": "dil_conv_5x5",
    "conv7x1_1x7": "conv_7x1_1x7",
}
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
               "sep5-1 sep7-0 max3-1 sep7-0 avg3-1 sep5-0 skip-3 avg3-2 sep3-2 max3-1",
               [2, 3, 4, 5, 6], [4, 5, 6]),
    "pnasnet": ("sep5-0 max3-0 sep7-1 max3-1 sep5-1 sep3-1 sep3-4 max3-1 sep3-0 skip-1",
                "sep5-0 max3-0 sep7-1 max3-1 sep5-1 sep3-1 sep3-4 max3-1 sep3-0 skip-1",
                [2, 3, 4, 5, 6], [2, 3, 4, 5, 6]),
    "amoebanet": ("avg3-0 max3-1 sep3-0 sep5-2 sep3-0 avg3-3 sep3-1 skip-1 skip-0 avg3-1",
                  "avg3-0 sep3-1 max3-0 sep7-2 sep7-0 avg3-1 max3-0 max3-1 conv7x1_1x7-0 sep3-5",
                  [4, 5, 6], [3, 4, 6]),
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
}
# fmt: on


def named_cell(name: str) -> Genotype:
    """The genotype of a name in CELLS."""

    def pairs(text):
        words = [word.split("-") for word in text.split()]
        return [(SHORT_NAMES[op], int(j)) for op, j in words]

    normal, reduce, *concats = CELLS[name]
    concats = concats or ([2, 3, 4, 5], [2, 3, 4, 5])
    return Genotype(pairs(normal), concats[0], pairs(reduce), concats[1])


# --------------------------------------------------------------------------------------------------
# The shapes of JSON files, see cli.check_shape: what a search and what a training leave behind

IDENTITY = {...: (str, int, float, bool, None)}
RUN = {"task": str, "dataset": str, "seed": int, "seconds": NUMBER, "versions": {"torch": str}}
RUN |= {"world_size": int, "device": str, "date": str, "git_commit": (str, None)}
EPOCH = {"epoch": int, "entropy": [NUMBER], "skips": [int], "convs": [int]}
EPOCH |= {"alphas": ([[[NUMBER]]], None), "betas": ([[NUMBER]], None)}
SEARCH = IDENTITY | {"alpha_start": (int, None), "partial": (int, None)}
SEARCH |= {"images": ([NUMBER], None), "ops": ([str], None)}
META = RUN | {"identity": SEARCH}
META |= {"epoch": int, "epochs": int, "history": [EPOCH], "stopped": (str, None)}
IMAGES = {"classes": [str], "mean": [NUMBER], "std": [NUMBER], "whites": ({...: NUMBER}, None)}
RESULT = RUN | {"identity": IDENTITY | {"width": int, "epochs": int}, "epochs": [dict]}
RESULT |= {"arch": str, "metric": str, "higher_is_better": bool, "best": NUMBER, "final": NUMBER}
RESULT |= {"params": NUMBER, "macs": NUMBER, "args": {"arch": str, "data": (str, None)}}
RESULT |= {"images": (IMAGES, None)}

# --------------------------------------------------------------------------------------------------
# Reading and writing. `where` opens the message of the InputError that anything malformed gets.

PRINTED = re.compile(r"[\w\s:=,./-]*(Genotype\([^\\]*\))\s*")  # what may stand before: time, name
RANGE = re.compile(r"range\(\s*(\d{1,2})\s*,\s*(\d{1,2})\s*\)")
MAX_PRINTED = 5000  # characters; a cell has about 1000


def parse_printed(text, where: str) -> Genotype:
    """A genotype as DARTS, P-DARTS, PC-DARTS and NASLib print it. Nothing is evaluated."""
    try:
        (printed,) = PRINTED.fullmatch(text[:MAX_PRINTED]).groups()
        printed = RANGE.sub(lambda found: str([*range(*map(int, found.groups()))]), printed)
        keywords = ast.parse(printed, mode="eval").body.keywords
        fields = {keyword.arg: ast.literal_eval(keyword.value) for keyword in keywords}
    except Exception:  # Python raises many types on what is no cell
        form = "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=..."
        raise InputError(f"{where}: not {form}") from None
    return parse_genotype(fields, where)


def parse_genotype(fields, where: str) -> Genotype:
    """A DARTS genotype from parsed JSON, an object with the fields of Genotype."""
    check_shape(fields, dict.fromkeys(Genotype._fields, list), where, "genotype")
    normal = parse_cell(fields["normal"], fields["normal_concat"], f"{where}: normal")
    reduce = parse_cell(fields["reduce"], fields["reduce_concat"], f"{where}: reduce")
    return Genotype(*normal, *reduce)


def parse_cell(pairs, concat, where):
    """The pairs and the concat of one cell, checked."""
    if not pairs or len(pairs) % 2:
        raise InputError(f"{where} needs two [op, input] pairs for each node, it has {len(pairs)}")
    for k, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InputError(f"{where}: {pair!r} is not an [op, input] pair")
        op, j = pair
        node = 2 + k // 2
        if op not in OP_NAMES:
            raise InputError(f"{where}: unknown op {op!r}; known: {', '.join(OP_NAMES)}")
        if type(j) is not int or j not in range(node):  # isinstance takes a bool for an int
            raise InputError(f"{where}: node {node} takes inputs 0 to {node - 1}, not {j!r}")
    last = 1 + len(pairs) // 2
    are_nodes = all(type(j) is int and 2 <= j <= last for j in concat)
    if not concat or not are_nodes or len(set(concat)) < len(concat):
        raise InputError(f"{where}_concat lists nodes from 2 to {last}, each once, not {concat}")
    return [(op, j) for op, j in pairs], list(concat)


def parse_nasbench(entry, where: str) -> NASBenchCell:
    """A NAS-Bench-101 cell from parsed JSON, pruned, if it obeys the benchmark's rules."""
    check_shape(entry, {"matrix": [[int]], "ops": [str]}, where)
    matrix, ops, V = entry["matrix"], entry["ops"], len(entry["matrix"])
    if V < 2 or any(len(row) != V or not {*row} <= {0, 1} for row in matrix):
        raise InputError(f"{where}: the matrix must be square, of zeros and ones")
    if np.tril(matrix).any():
        raise InputError(f"{where}: an edge leads back; the matrix must be upper triangular")
    known = all(op in NASBENCH_OPS for op in ops[1:-1])
    if len(ops) != V or ops[0] != "input" or ops[-1] != "output" or not known:
        wanted = f"input, {' or '.join(NASBENCH_OPS)}, output"
        raise InputError(f"{where}: {V} ops are needed: {wanted}; not {ops}")
    cell = prune(NASBenchCell(matrix, ops))
    if cell is None:
        raise InputError(f"{where}: no path leads from input to output")
    V, E = len(cell.ops), sum(map(sum, cell.matrix))
    if V > MAX_VERTICES or E > MAX_EDGES:
        most = f"at most {MAX_VERTICES} and {MAX_EDGES} fit"
        raise InputError(f"{where}: {V} vertices and {E} edges; {most}")
    return cell


def prune(cell: NASBenchCell) -> NASBenchCell | None:
    """Without the vertices that are on no path from input to output; None if there is no path."""
    matrix, V = np.array(cell.matrix), len(cell.ops)
    steps = np.eye(V, dtype=bool) | (matrix > 0)
    reaches = np.linalg.matrix_power(steps, V)  # [i, j]: whether a path leads from i to j
    keep = np.flatnonzero(reaches[0] & reaches[:, -1])
    if not len(keep):
        return None
    return NASBenchCell(matrix[np.ix_(keep, keep)].tolist(), [cell.ops[v] for v in keep])


def nasbench_hash(cell: NASBenchCell) -> str:
    """The hash by which NAS-Bench-101 lists a cell (32 hex digits), equal for isomorphic cells."""

    def md5(text):
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

    def around(neighbors):
        return "".join(sorted(hashes[u] for u in neighbors))

    matrix, V = cell.matrix, len(cell.ops)
    targets = [[j for j in range(V) if matrix[v][j]] for v in range(V)]
    sources = [[i for i in range(V) if matrix[i][v]] for v in range(V)]
    labels = [-1] + [NASBENCH_OPS.index(op) for op in cell.ops[1:-1]] + [-2]
    hashes = [md5(str((len(targets[v]), len(sources[v]), labels[v]))) for v in range(V)]
    for _ in range(V):
        hashes = [md5(f"{around(sources[v])}|{around(targets[v])}|{hashes[v]}") for v in range(V)]
    return md5(str(sorted(hashes)))


def parse_arch(entry, where: str) -> Genotype | NASBenchCell:
    """An architecture from an object of genotype.json or archs.json, or of NAS-Bench-101's own."""
    if "module_adjacency" in entry:
        cell = {"matrix": entry["module_adjacency"], "ops": entry.get("module_operations")}
        return parse_nasbench(cell, where)
    space = entry.get("space")
    if space == "darts":
        return parse_genotype(entry.get("genotype"), where)
    if space == "nasbench101":  # in a result.json under "genotype"
        return parse_nasbench(entry.get("genotype", entry), where)
    raise InputError(f'{where}: its "space" must be "darts" or "nasbench101", not {space!r}')


def to_entry(arch: Genotype | NASBenchCell) -> dict:
    """The inverse of `parse_arch`."""
    if isinstance(arch, NASBenchCell):
        return {"space": "nasbench101", **arch._asdict()}
    return {"space": "darts", "genotype": arch._asdict()}


def to_text(arch: Genotype | NASBenchCell) -> str:
    """A line for each node or vertex: its ops and their inputs."""
    lines = []
    if isinstance(arch, NASBenchCell):
        for v, op in enumerate(arch.ops):
            sources = ", ".join(str(i) for i in range(v) if arch.matrix[i][v])
            lines.append(f"  {v} = {op}({sources})" if v else "  0 = input")
        return "\n".join(lines)
    for name, pairs, concat in (("normal", *arch[:2]), ("reduce", *arch[2:])):
        lines.append(f"{name} cell, output = concat of nodes {', '.join(map(str, concat))}")
        for node, (a, b) in enumerate(zip(pairs[::2], pairs[1::2]), start=2):
            lines.append(f"  {node} = {a[0]}({a[1]}) + {b[0]}({b[1]})")
    return "\n".join(lines)


def load_archs(path) -> dict:
    """{id: architecture} of a list of architectures, archs.json, each checked, in their order."""
    entries = read_json(path, [{"id": (str, int)}])
    if not entries:
        raise InputError(f"{path}: an empty list of architectures")
    archs = {}
    for entry in entries:
        arch_id = str(entry["id"])  # which becomes a folder
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", arch_id) or not arch_id.strip("."):
            raise InputError(f"{path}: the id {arch_id!r} may have letters, digits, _ . - alone")
        archs[arch_id] = parse_arch(entry, f"{path}:{arch_id}")
    if len(archs) < len(entries):
        raise InputError(f"{path}: two architectures have the same id")
    return archs


def load_arch(text: str) -> Genotype | NASBenchCell:
    """The architecture of a name (darts_v2), a file (runs/x/genotype.json), archs.json:ID, or of a
    cell as DARTS prints it: the text or a file with it."""
    if text in CELLS:
        return named_cell(text)
    if "Genotype(" in text:
        return parse_printed(text, "--arch")
    if os.path.isfile(text):
        content = Path(text).read_bytes()
        if b"Genotype(" in content and content.lstrip()[:1] not in b"[{":
            return parse_printed(content.decode(errors="replace"), text)
        entry = read_json(text, (dict, list))
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


def read_search(path) -> dict:
    """What a search wrote as genotype.json, checked."""
    search = read_json(path, {"meta": (META, None)})
    parse_arch(search, path)
    meta = search["meta"]
    if meta is None:
        raise InputError(f"{path} is of no search; visualize.py {path} draws its cell")
    fits = 0 < len(meta["history"]) == meta["epoch"]
    edges = {"alphas": (2, NUM_EDGES, len(PRIMITIVES)), "betas": (2, NUM_EDGES)}
    for key, size in {"entropy": (2,), "skips": (2,), "convs": (2,), **edges}.items():
        values = [epoch[key] for epoch in meta["history"] if epoch[key] is not None]
        fits = fits and all(np.array(value, object).shape == size for value in values)
    if not fits:
        raise InputError(f'{path}: "history" is not that of two cells in {meta["epoch"]} epochs')
    return search


def read_result(path) -> dict:
    """A result.json, checked."""
    result = read_json(path, RESULT)
    parse_arch(result, path)
    check_shape(result["epochs"], [{result["metric"]: NUMBER}], path, "epochs")
    scores = [epoch[result["metric"]] for epoch in result["epochs"]]
    best = (max if result["higher_is_better"] else min)(scores, default=None)
    found = result["best"], [result["final"]], result["identity"]["epochs"]
    if found != (best, scores[-1:], len(scores)):
        text = f'"best" {result["best"]}, "final" {result["final"]} of {found[2]} "epochs"'
        raise InputError(f"{path}: {text} contradict the {len(scores)} epochs, the best {best}")
    return result


def objective(run) -> str:
    """What a search, by its meta, or a training is for."""
    partial = run.get("identity", {}).get("partial") or 1  # of a search
    return f"{run['task']} on {run['dataset']}" + (f", partial {partial}" if partial > 1 else "")


def search_title(meta) -> str:
    return f"{objective(meta)}, seed {meta['seed']}"


def architecture_key(arch) -> str:
    """The same text for one architecture: isomorphic cells of NAS-Bench-101 are one."""
    return nasbench_hash(arch) if isinstance(arch, NASBenchCell) else str(arch)


def short_name(text: str) -> str:
    """What to call an architecture of the command line; runs/search_x/genotype.json is x."""
    if "Genotype(" in text:
        return "cell_" + hashlib.sha256(text.encode()).hexdigest()[:8]
    if not os.path.isfile(text):
        return text.rpartition(":")[2]
    path = Path(text).absolute()
    return (path.parent.name if path.name == "genotype.json" else path.stem).removeprefix("search_")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Print a cell as text, or the published cells.")
    parser.add_argument("arch", nargs="?", help="a name, a file, archs.json:ID or Genotype(...)")
    return parser.parse_args(argv)


def main(args):
    arch = args.arch and load_arch(args.arch)
    print(to_text(arch) if arch else "\n".join(CELLS))
    if isinstance(arch, NASBenchCell):
        print(f"NAS-Bench-101 hash {nasbench_hash(arch)}")
    elif arch:
        print(repr(arch).replace("[2, 3, 4, 5]", "range(2, 6)"))  # as DARTS does


if __name__ == "__main__":
    cli.run(main, parse_args)
