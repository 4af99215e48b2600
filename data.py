"""Data sets. Small ones lie in memory as one uint8 tensor and are sliced into batches; large ones
stay on disk (image_files.py), and workers decode and crop each image for its batch.

    shapes       embedded, drawn in seconds: 10 classes of objects in simple scenes
    cifar10      CIFAR-10 through torchvision, downloaded to PATH if it is not there
    folder       PATH/train/<class>/* with PATH/val/ or PATH/test/, or any tree of images
    imagenet     on disk: PATH/train/<class>/* and PATH/val/<class>/*
    imagenet22k  on disk: PATH/<class>/*, to search on: it has no evaluation part
    cityscapes   on disk: PATH/leftImg8bit/{train,val}/<city>/*, masks in PATH/gtFine/{train,val}

As a script it is a data doctor: it prints what it finds, and exits with 1 if training would fail.

    python data.py --dataset folder --data my_photos/ --size 64
"""

import argparse
import hashlib
import os
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import cli
import numpy as np
import torch
import torch.distributed as dist
from cli import InputError, at_least
from filelock import FileLock

import image_files
from image_files import DataSet, View, listed
from shapes import SHAPES, load_shapes

# The images held out and those of --limit are the same for every --seed, so that seeds differ by
# training alone and a search never sees the images that its cell is evaluated on (ImageNet-22K has
# none that it does not see).
SPLIT_SEED = 0
HELD_OUT_22K = 50_000  # images of the held-out half of ImageNet-22K to evaluate on
HELD_OUT = 0.1  # of the images of a folder that has neither val/ nor test/
MAX_BYTES = 16 * 2**30  # of pixels in memory
# Of a folder: the larger that its photos fill in MAX_BYTES / 4. A step of a search at 160 takes 0.3
# of the time of one at 32, by its stem; below 129 the tiles of a jigsaw would be too small.
SIZES = 32, 160


class ImageSet(DataSet):
    """In memory: images (N, S, S, 3) uint8 RGB."""

    padded_crops = True

    def __init__(self, images, labels=None, classes=(), masks=None, names=None):
        names = np.arange(len(images)).astype("S") if names is None else names
        super().__init__(names, labels, classes, masks)
        self.images, self.size = images, images.shape[1]

    def resize(self, size):
        """Scales the images to a half or a quarter of their size."""
        whole, block = self.size, self.size // size
        if size * block != whole or block not in (2, 4):
            raise InputError(f"--size {size}: not one of {whole}, {whole // 2}, {whole // 4}")
        blocks = self.images.view(len(self), size, block, size, block, 3)
        self.images, self.size = blocks.float().mean((2, 4)).round().byte(), size  # (N, S, S, 3)
        if self.masks is not None:  # the pixel next to the middle of each block
            self.masks = self.masks[:, block // 2 :: block, block // 2 :: block]

    def fetch(self, parts, view, seed, device):
        targets = getattr(self, view.targets) if view.targets else None
        for index in parts:
            yield self.images[index], None if targets is None else targets[index], index


def load(name: str, path=None, size: int | None = None, limit: int | None = None, workers=0):
    """(training set, evaluation set or None), of each at most `limit` images, chosen with a fixed
    seed. `workers` processes decode what is on disk; None: one a CPU core and rank, at most 8."""
    sets = list(read(name, path, size, limit))
    check(path, *sets)
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    for part in sets:
        part.workers = workers
    return (*sets, None)[:2]


def read(name, path, size, limit):
    """Yields the sets of `load`, of whatever could be read."""
    if (name == "shapes") != (path is None):
        raise InputError(f"--dataset {name} with --data {path}: all but shapes need a PATH")
    for part in DATASETS[name](Path(path or ""), size, limit):
        if limit and limit < len(part):
            part = part.subset(random_subset(len(part), limit))
        if size and size != part.size:
            part.resize(size)
        yield part


def check(path, train, test=None):
    """InputError if the sets are not fit to train on."""
    if test is not None and test.unreadable:  # a metric over fewer images would not be comparable
        bad = f"{len(test.unreadable)} unreadable files in the evaluation part"
        raise InputError(f"{bad}, first {next(iter(test.unreadable))}: mend or replace them")
    bad, good = train.unreadable, train.formats.total()
    if len(bad) > image_files.MAX_UNREADABLE * (len(bad) + good):
        raise InputError(f"{path}: {len(bad)} images are unreadable, first {next(iter(bad))}")
    if len(train) < 2 or test is not None and not len(test):
        raise InputError(f"{path}: {len(train)} images to train, {len(test or [])} to evaluate")


# ------------------------------------------------------------------------------- Splits and batches


def random_subset(n: int, size: int | None) -> torch.Tensor:
    """Sorted indices of min(n, size) out of n images, chosen at random but always the same."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return order[:size].sort().values


def split_in_half(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random halves of n images as sorted indices, without an odd image."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: n // 2 * 2].view(2, -1).sort().values.unbind()


def split(dataset, seed: int, shares, by_class) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random parts of the images as sorted indices: halves, or two shares of all images, or of
    each class."""
    if not shares:
        return split_in_half(len(dataset), seed)
    if sum(shares) > 1:
        raise InputError(f"--images {shares[0]} {shares[1]}: together more than all images")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    labels = dataset.labels if by_class else torch.zeros(len(dataset))
    ordered = order[labels[order].argsort(stable=True)]
    parts = [], []
    for members in ordered.split(labels.unique(return_counts=True)[1].tolist()):
        a, b = (round(end * len(members)) for end in (shares[0], sum(shares)))
        parts[0].append(members[:a])
        parts[1].append(members[a:b])
    parts = [torch.cat(part).sort().values for part in parts]
    if not all(map(len, parts)):
        why = f"of {len(ordered)} images (of each class, for cls) it leaves none"
        raise InputError(f"--images {shares[0]} {shares[1]}: {why} for weights or alphas")
    return tuple(parts)


def hold_out(train, test):
    """Training and evaluation set of train.py: ImageNet-22K has no evaluation images."""
    if test is None:
        train, test = map(train.subset, split_in_half(len(train), SPLIT_SEED))
        test = test.subset(random_subset(len(test), HELD_OUT_22K))
    return train, test


def split_hash(*parts):
    """12 hex digits for which images do what; a part is a data set, an index tensor or None."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(part.numpy())
        elif part is not None:
            digest.update(b"\n".join(part.names.tolist()))
        digest.update(b"\n\n")
    return digest.hexdigest()[:12]


def batches(dataset, view: View, batch_size: int, device, index=None, seed=None, skip=0):
    """Yields images uint8 (B, 3, H, W) in channels_last, the view's labels (B,), masks (B, H, W) or
    None, and the indices (B,) of the images; `index` is a tensor of those to use. With a seed
    (integers): in random order, without a last smaller batch, from batch `skip` on, with random
    crops of images on disk. Without, for evaluation: each image once, scenes with masks whole and
    one by one. `batch_size` counts the images of all ranks, of which each gets its share."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    index = torch.arange(len(dataset)) if index is None else index
    if seed is None:
        whole = view.targets == "masks" and dataset.whole_masks
        parts = index[rank::world].split(1 if whole else max(1, batch_size // world))
    else:  # the same order for all ranks; torch's state is not touched
        order = np.random.default_rng(seed).permutation(len(index))
        order = torch.from_numpy(order[: len(index) // batch_size * batch_size])
        parts = index[order].view(-1, batch_size)[skip:].chunk(world, 1)[rank]
    parts = [part for part in parts if len(part)]
    for images, targets, part in dataset.fetch(parts, view, seed, device):
        images = images.to(device, non_blocking=True)
        targets = None if targets is None else targets.to(device, non_blocking=True)
        yield images.permute(0, 3, 1, 2), targets, part.to(device, non_blocking=True)


def read_shapes(*_):
    for part, n in enumerate((2000, 500)):
        images, labels, masks = load_shapes(n, SPLIT_SEED + part)
        dataset = ImageSet(images, labels, SHAPES, masks)
        dataset.mask_classes = ["sky", "ground", *SHAPES]
        yield dataset


def read_cifar10(path, *_):
    from torchvision.datasets import CIFAR10  # here, as nothing else needs its import time

    try:
        sources = [CIFAR10(path, train=train) for train in (True, False)]
    except RuntimeError:  # not there, or not what its checksums say
        print(f"CIFAR-10 is not in {path}: downloading it (170 MB)", flush=True)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with FileLock(path / "cifar10.lock"):  # of all ranks one fetches it
                sources = [CIFAR10(path, train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            raise InputError(f"{error}: put cifar-10-python.tar.gz into {path}") from None
    for source in sources:
        images, labels = torch.from_numpy(source.data), torch.tensor(source.targets)
        dataset = ImageSet(images, labels, source.classes)
        dataset.mean, dataset.std = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)
        yield dataset


def read_folder(root, size, limit):
    train, test = image_files.read_trees(root)
    one_folder, notes = test is None, train.notes
    if train.root == root:
        train.labels, train.why_no_labels = None, DataSet.why_no_labels
    if not size:
        sides, median = train.sides, train.sides[len(train.sides) // 2]
        fitting = [s for s in SIZES if s <= median and 3 * s * s * len(train) <= MAX_BYTES / 4]
        size = max(fitting, default=SIZES[0])
        found = f"{len(sides)} images: {sides[0]} to {sides[-1]} pixels, median {median}"
        notes.append(f"size {size}, from the shorter sides of {found}; --size takes another")
    if one_folder:
        held_out = torch.zeros(len(train), dtype=torch.bool)
        held_out[random_subset(len(train), max(1, round(HELD_OUT * len(train))))] = True
        test, train = (train.subset(chosen.nonzero()[:, 0]) for chosen in (held_out, ~held_out))
    train.size = test.size = size
    train, test = (part.subset(random_subset(len(part), limit)) for part in (train, test))
    if 3 * size * size * (len(train) + len(test)) <= MAX_BYTES:
        train, test = map(load_images, (train, test))
        notes.append(f"left out: {len(train.unreadable) + len(test.unreadable)} unreadable")
    else:
        test.crop = image_files.square_crop  # as in memory
        notes.append(f"more than {MAX_BYTES >> 30} GiB of pixels: read from disk, in random crops")
    notes.append(f"{root}: {len(train)} images to train, {len(test)} to evaluate")
    train.notes, test.notes = notes, []
    if one_folder:  # of which some files are unreadable
        train.unreadable, test.unreadable = train.unreadable | test.unreadable, {}
    return train, test


def load_images(files):
    """An ImageSet of those of the ImageFiles that can be read: their middle squares, scaled."""
    images = np.empty((len(files), files.size, files.size, 3), np.uint8)
    crop = partial(image_files.square_crop, view=View(None, "area", files.size), rng=None)

    def read(i):
        images[i], _, found = image_files.read_rgb(files.path(i), crop, files.whites)
        return found

    what = f"{files.root}: images in memory, of {len(files):,}"
    formats, errors = image_files.try_all(read, range(len(files)), what)
    good = files.subset(torch.tensor(list(formats), dtype=torch.int64))
    images = torch.from_numpy(images[list(formats)] if errors else images)
    dataset = ImageSet(images, good.labels, good.classes, names=good.names)
    dataset.why_no_labels, dataset.whites = files.why_no_labels, files.whites
    dataset.unreadable = {files.path(i): reason for i, reason in errors.items()}
    dataset.formats = Counter(formats.values())
    return dataset


# What reads the training and perhaps an evaluation part of each, given --data, --size and --limit;
# what it does not do about size and limit, `read` does afterwards
DATASETS = {
    "shapes": read_shapes,
    "cifar10": read_cifar10,
    "folder": read_folder,
    "imagenet": lambda root, *_: image_files.read_trees(root, both=True),
    "imagenet22k": lambda root, *_: image_files.read_trees(root)[:1],
    "cityscapes": image_files.read_cityscapes,
}

# --------------------------------------------------------------------------------- The command line


def add_arguments(group):
    """The options that name a data set."""
    add = group.add_argument
    add("--dataset", choices=list(DATASETS), default="shapes", help="shapes is embedded")
    add("--data", type=cli.path, metavar="PATH", help="the images; cifar10 is downloaded there")
    add("--limit", type=at_least(2, int), metavar="N", help="a fixed choice of N images per part")
    add("--size", type=at_least(1, int), metavar="PIXELS", help="side of the images or crops")


def describe(train):
    """What a run says about its training images, as lines."""
    lines = [f"left out, unreadable: {path} ({why})" for path, why in train.unreadable.items()]
    return [*train.notes, *lines[:5]]


def examine(title, dataset):
    """What the doctor finds in a part of a data set, line by line."""
    dataset.examine(random_subset(len(dataset), 1000))
    yield from dataset.notes
    yield f"{title}: {len(dataset)} images"
    if dataset.formats:
        often = dict(dataset.formats.most_common(10))
        yield f"  decoded {dataset.formats.total()}, most of them {listed(often)}"
    yield from (f"  unreadable: {path} ({why})" for path, why in dataset.unreadable.items())
    for what, classes in (("labels", dataset.classes), ("masks", dataset.mask_classes)):
        none = f"none ({getattr(dataset, f'why_no_{what}')})"
        yield f"  {what}: {none if getattr(dataset, what) is None else f'{len(classes)} classes'}"
    if dataset.masks is not None:
        yield f"  {dataset.labelled:.1%} of the pixels of these masks count"
    if dataset.labels is not None:
        counts = dataset.labels.bincount(minlength=len(dataset.classes)).tolist()
        yield from (f"  {name}: {n}" for name, n in zip(dataset.classes[:50], counts))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Check a data set: counts, unreadable files.")
    add_arguments(parser)
    return parser.parse_args(argv)


def main(args):
    try:
        sets = list(read(args.dataset, args.data, args.size, args.limit))
        for title, part in zip(("training", "evaluation"), sets):
            print(*examine(title, part), sep="\n")
        check(args.data, *sets)
    except InputError as error:
        print(f"training would fail: {error}")
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, parse_args)
