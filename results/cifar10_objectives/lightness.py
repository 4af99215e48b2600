"""What colorization is without looking at more than one pixel: loss and accuracy, on the evaluation
images, of the frequencies of the colours in the training images, at all and at each lightness.

    PYTHONPATH=. python results/cifar10_objectives/lightness.py cifar10_4k/
"""

import sys

import torch

import data
import pretext

LEVELS = 50  # of lightness


def count(images):
    """How often each lightness has each colour, (LEVELS, 313)"""
    task = pretext.make_task("col", images, 16, "cifar", 5, "cpu")
    counts = torch.zeros(LEVELS, task.num_classes, dtype=torch.double)
    for batch in data.batches(images, task.view, 100, "cpu"):
        x, y = task.prepare(*batch, train=False)
        level = ((x * task.std.mean() + task.mean.mean()) * LEVELS).long().clamp(max=LEVELS - 1)
        counts.index_put_((level.flatten(), y.flatten()), torch.tensor(1.0).double(), True)
    return counts


train, test = (count(part) for part in data.load("folder", sys.argv[1], 16, limit=10000))
always = (train.sum(0) + 0.5).expand(LEVELS, -1)
for name, weights in (("always", always), ("by lightness", train + 20 * always / always[0].sum())):
    p = weights / weights.sum(1, keepdim=True)
    loss = -(test * p.log()).sum() / test.sum()
    hits = test.gather(1, p.argmax(1, keepdim=True)).sum() / test.sum()
    print(f"{name}: loss {loss:.4f}  top1 {100 * hits:.2f}")
