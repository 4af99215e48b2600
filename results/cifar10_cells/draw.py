"""The architectures of this study: 17 published cells, and for each a random one of its size.

PYTHONPATH=. python results/cifar10_cells/draw.py > archs.json
"""

import json
import random
from functools import lru_cache, partial

import genotypes
import model_eval
import sample
import utils

NODES = [2, 3, 4, 5]
PUBLISHED = [name for name in genotypes.CELLS if len(genotypes.load_arch(name).normal) == 8]


@lru_cache
def with_edges(*edges):
    """Parameters of the study's network with these edges (cell, op, input), `none` elsewhere."""
    cells = {"normal": [("none", 0)] * 8, "reduce": [("none", 0)] * 8}
    for cell, op, j in edges:
        cells[cell][-1] = op, j
    genotype = genotypes.Genotype(cells["normal"], NODES, cells["reduce"], NODES)
    build = partial(model_eval.build_network, genotype, 8, 5, "cifar", num_classes=10)
    return utils.count(build, (1, 3, 16, 16))[0]


def params(genotype):
    edges = [("normal", op, j) for op, j in genotype.normal]
    edges += [("reduce", op, min(j, 2)) for op, j in genotype.reduce]
    return sum(with_edges(edge) for edge in edges) - 15 * with_edges()


def can_be_found(genotype):
    """No `none`, and two different inputs for each node: what a search may end with."""
    for cell in (genotype.normal, genotype.reduce):
        inputs = [j for _, j in cell]
        if "none" in dict(cell) or any(a == b for a, b in zip(inputs[::2], inputs[1::2])):
            return False
    return True


def random_like(name, rng, tolerance=0.03, proposals=10_000):
    """A random cell of the size of a published one: from that on, two random edges at a time are
    drawn anew, wherever the parameters stay within 3%. In the end all such cells are equally
    likely, whatever the first was. (Cells of 80,000 parameters are one in a million draws.)"""
    genotype, target = genotypes.load_arch(name), params(genotypes.load_arch(name))
    for _ in range(proposals):
        drawn = sample.draw_darts(rng)
        new = genotype._replace(normal=[*genotype.normal], reduce=[*genotype.reduce])
        for k in rng.sample(range(16), 2):
            part, source = (new.normal, drawn.normal) if k < 8 else (new.reduce, drawn.reduce)
            part[k % 8] = source[k % 8]
        if can_be_found(new) and abs(params(new) / target - 1) < tolerance:
            genotype = new
    return genotype


rng, archs = random.Random(0), {}
for name in PUBLISHED:
    archs[name], archs[f"like_{name}"] = genotypes.load_arch(name), random_like(name, rng)
print(json.dumps([{"id": name, **genotypes.to_entry(arch)} for name, arch in archs.items()]))
