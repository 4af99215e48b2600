"""The architectures of this study: 17 published cells, and for each a random one of its size.

PYTHONPATH=. python results/cifar10_cells/draw.py > archs.json
"""

import json
import random

import genotypes
import likeness
import sample

PUBLISHED = [name for name in genotypes.CELLS if len(genotypes.load_arch(name).normal) == 8]


def params(genotype):
    return sample.darts_cost(genotype, width=8, layers=5)[0]


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
        found = likeness.can_be_found(new.normal) and likeness.can_be_found(new.reduce)
        if found and abs(params(new) / target - 1) < tolerance:
            genotype = new
    return genotype


rng, archs = random.Random(0), {}
for name in PUBLISHED:
    archs[name], archs[f"like_{name}"] = genotypes.load_arch(name), random_like(name, rng)
print(json.dumps([{"id": name, **genotypes.to_entry(arch)} for name, arch in archs.items()]))
