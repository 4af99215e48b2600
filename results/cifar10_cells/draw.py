"""The architectures of a study: some cells, here 17 published ones, and for each a random one of
its size, that of a network for CIFAR-10 of this width and depth.

PYTHONPATH=. python results/cifar10_cells/draw.py > archs.json
PYTHONPATH=. python results/cifar10_cells/draw.py found.json 16 6 > archs.json  # FILE WIDTH LAYERS
"""

import json
import random
import sys

import genotypes
import likeness
import sample


def random_like(genotype, rng, width, layers, tolerance=0.03, proposals=10_000):
    """A random cell of the size of a given one: from that on, two random edges at a time are drawn
    anew, wherever the parameters stay within 3%. In the end all such cells are equally likely,
    whatever the first was. (Cells of 80,000 parameters are one in a million draws.)"""
    target, _ = sample.darts_cost(genotype, width, layers)
    for _ in range(proposals):
        drawn = sample.draw_darts(rng)
        new = genotype._replace(normal=[*genotype.normal], reduce=[*genotype.reduce])
        for k in rng.sample(range(16), 2):
            part, source = (new.normal, drawn.normal) if k < 8 else (new.reduce, drawn.reduce)
            part[k % 8] = source[k % 8]
        found = likeness.can_be_found(new.normal) and likeness.can_be_found(new.reduce)
        params, _ = sample.darts_cost(new, width, layers)
        if found and abs(params / target - 1) < tolerance:
            genotype = new
    return genotype


def main():
    published = {name: genotypes.load_arch(name) for name in genotypes.CELLS}
    cells = {name: cell for name, cell in published.items() if len(cell.normal) == 8}
    width, layers = 8, 5
    if len(sys.argv) > 1:
        cells, (width, layers) = genotypes.load_archs(sys.argv[1]), map(int, sys.argv[2:])
    rng, archs = random.Random(0), {}
    for name, cell in cells.items():
        archs[name], archs[f"like_{name}"] = cell, random_like(cell, rng, width, layers)
    print(json.dumps([{"id": name, **genotypes.to_entry(arch)} for name, arch in archs.items()]))


main()
