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
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from filelock import FileLock

import cli
import image_files
from cli import InputError, at_least
from image_files import DataSet, View
from shapes import SHAPES, load_shapes

# The images held out and those of --limit are the same for every --seed, so that seeds differ by
# training alone and a search never sees the images that its cell is evaluated on.
SPLIT_SEED = 0
HELD_OUT_22K = 50_000  # images of the held-out half of ImageNet-22K to evaluate on
HELD_OUT = 0.1  # of the images of a folder that has neither val/ nor test/
MAX_BYTES = 16 * 2**30  # of pixels in memory
# Of a folder: the larger that its photos fill in MAX_BYTES / 4. A step of a search at 160 takes 0.3
# of the time of one at 32, by its stem; below 144 the tiles of a jigsaw would be too small.
SIZES = 32, 160


class ImageSet(DataSet):
    """In memory: images (N, S, S, 3) uint8 RGB."""

    padded_crops = True

    def __init__(self, images, labels=None, classes=(), masks=None, names=None):
        super().__init__(names or [str(i) for i in range(len(images))], labels, classes, masks)
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
    sets = read(name, path, size, limit)
    check(path, *sets)
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    for part in sets:
        part.workers = workers
    return (*sets, None)[:2]


def read(name, path, size, limit):
    """The sets of `load`, of whatever could be read."""
    if (name == "shapes") != (path is None):
        raise InputError(f"--dataset {name} with --data {path}: all but shapes need a PATH")
    sets = []
    for part in DATASETS[name](Path(path or ""), size, limit):
        if limit and limit < len(part):
            part = part.subset(random_subset(len(part), limit))
        if size and size != part.size:
            part.resize(size)
        sets.append(part)
    return sets


def check(path, train, test=None):
    """InputError if the sets are not fit to train on."""
    if test is not None and test.unreadable:  # a metric over fewer images would not be comparable
        bad = f"{len(test.unreadable)} unreadable files in the evaluation part"
        raise InputError(f"{bad}, first {next(iter(test.unreadable))}: mend or remove them")
    bad, good = train.unreadable, train.formats.total()
    if len(bad) > image_files.MAX_UNREADABLE * (len(bad) + good):
        raise InputError(f"{path}: {len(bad)} images are unreadable, first {next(iter(bad))}")
    if len(train) < 2 or test is not None and not len(test):
        raise InputError(f"{path}: {len(train)} images to train, {len(test or [])} to evaluate")


# --------------------------------------------------------------------------------------------------
# Splits and batches


def random_subset(n: int, size: int | None) -> torch.Tensor:
    """Sorted indices of min(n, size) out of n images, chosen at random but always the same."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return order[:size].sort().values


def split_in_half(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random halves of n images as sorted indices, without an odd image."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: n // 2 * 2].view(2, -1).sort().values.unbind()


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
            digest.update(part.names_as_bytes())
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
    found, left_out = list_images(root)
    train_root = (*image_files.find_parts(root, image_files.TRAINING), root)[0]
    val_roots = image_files.find_parts(root, image_files.EVALUATION)
    test_root = (*val_roots, train_root)[0]
    paths = [f for f in found if train_root in f.parents and not {*val_roots} & {*f.parents}]
    test_paths = [f for f in found if val_roots and test_root in f.parents]
    if not paths:
        raise InputError(f"{train_root}: no images ({', '.join(image_files.EXTENSIONS)})")
    left_out["outside the folders that are used"] = len(found) - len(paths) - len(test_paths)

    classes, notes, why_no_labels = [], [], None
    stray = [f for f in paths + test_paths if f.parent in (train_root, test_root)]
    if train_root != root and stray:
        why_no_labels = f"{stray[0]} is not in the folder of a class"
    elif train_root != root:
        classes = sorted({f.relative_to(train_root).parts[0] for f in paths})
        test_classes = {f.relative_to(test_root).parts[0] for f in test_paths}
        for folder, found_there in ((test_root, test_classes), (train_root, classes)):
            reason = image_files.why_unlabelled(folder, sorted(found_there), classes)
            why_no_labels = reason or why_no_labels
    if why_no_labels:
        classes = []
    sides, whites, notes = image_files.survey("", paths)
    if not size:
        size, note = fitting_size(sides, len(paths))
        notes.insert(0, note)
    if not val_roots:
        held_out = random_subset(len(paths), max(1, round(HELD_OUT * len(paths)))).tolist()
        test_paths = [paths[i] for i in held_out]
        paths = sorted({*paths} - {*test_paths}, key=Path.as_posix)

    sets = []
    for folder, part in ((train_root, paths), (test_root, test_paths)):
        chosen = [part[i] for i in random_subset(len(part), limit).tolist()]
        dataset = read_images(folder, chosen, size, classes, whites)
        dataset.why_no_labels = why_no_labels or dataset.why_no_labels
        left_out["beyond --limit"] += len(part) - len(chosen)
        left_out["unreadable"] += len(dataset.unreadable)
        sets.append(dataset)
    train, test = sets
    endings = Counter(Path(name).suffix.lower() for name in train.names + test.names)
    counts = f"{len(train)} images to train, {len(test)} to evaluate, {listed(endings)}"
    train.notes = [f"{root}: {counts}", f"left out: {listed(left_out)}", *notes]
    if not val_roots:  # one folder, of which some files are unreadable
        train.unreadable, test.unreadable = train.unreadable | test.unreadable, {}
    return sets


def list_images(root):
    """The sorted paths of the image files below a folder, and a Counter of what else there is. Each
    folder is visited once, however many links lead to it."""
    images, others, visited = [], Counter(), set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        if image_files.folder_id(folder) in visited:
            others["links to folders seen before"] += 1
            subfolders.clear()
            continue
        visited.add(image_files.folder_id(folder))
        for path in (Path(folder, name) for name in names):
            hidden = path.name.startswith(".")
            kind = "hidden" if hidden else path.suffix.lower() or "without an ending"
            if kind in image_files.EXTENSIONS and not path.is_file():  # a pipe would block
                others["not a regular file"] += 1
            elif kind in image_files.EXTENSIONS:
                images.append(path)
            else:
                others[kind] += 1
    return sorted(images, key=Path.as_posix), others


def listed(counts):
    """A Counter as text, the most frequent first."""
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {what}" for what, n in by_count if n) or "nothing"


def fitting_size(sides, images):
    """The one of SIZES for so many photos with these shorter sides, and a note on it."""
    sides = sides or [0]
    median = sides[len(sides) // 2]
    fitting = [s for s in SIZES if s <= median and 3 * s * s * images <= MAX_BYTES / 4]
    size = max(fitting, default=SIZES[0])
    found = f"{len(sides)} images: {sides[0]} to {sides[-1]} pixels, median {median}"
    return size, f"size {size}, from the shorter sides of {found}; --size takes another"


def read_images(root, paths, size, classes, whites):
    """An ImageSet of those files that can be read, with labels if there are classes."""
    if len(paths) * size * size * 3 > MAX_BYTES:
        images = f"{len(paths)} images of {size} x {size}"
        raise InputError(f"{images} take too much memory; use --limit or a smaller --size")
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def middle_square(W, H):
        return image_files.middle(W, H, min(W, H), min(W, H), size)

    def read(i):
        images[i], _, found = image_files.read_rgb(paths[i], middle_square, whites)
        return found

    formats, errors = image_files.try_all(read, range(len(paths)))
    images = images[list(formats)] if errors else images
    names = [paths[i].relative_to(root).as_posix() for i in formats]
    dataset = ImageSet(torch.from_numpy(images), None, classes, names=names)
    if classes:
        labels = [classes.index(name.partition("/")[0]) for name in names]
        dataset.labels = torch.tensor(labels, dtype=torch.int64)
    dataset.unreadable = {str(paths[i]): reason for i, reason in errors.items()}
    dataset.formats = Counter(formats.values())
    return dataset


# What reads the training and perhaps an evaluation part of each, given --data, --size and --limit;
# what it does not do about size and limit, `read` does afterwards
DATASETS = {
    "shapes": read_shapes,
    "cifar10": read_cifar10,
    "folder": read_folder,
    "imagenet": image_files.read_imagenet,
    "imagenet22k": lambda root, *_: [image_files.read_classes(root)],
    "cityscapes": image_files.read_cityscapes,
}

# --------------------------------------------------------------------------------------------------
# The command line


def add_arguments(group):
    """The options that name a data set."""
    add = group.add_argument
    add("--dataset", choices=list(DATASETS), default="shapes", help="shapes is embedded")
    add("--data", type=cli.path, metavar="PATH", help="the images, or where cifar10 goes to")
    add("--limit", type=at_least(2, int), metavar="N", help="a fixed choice of N images a part")
    add("--size", type=at_least(1, int), metavar="PIXELS", help="side of the images or crops")


def describe(train, test):
    """What a run says about its data, as lines; `test` may be None."""
    notes = [note for part in (train, test) if part is not None for note in part.notes]
    lines = [f"left out, unreadable: {path} ({why})" for path, why in train.unreadable.items()]
    return notes + lines[:5]


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
        sets = read(args.dataset, args.data, args.size, args.limit)
        for title, part in zip(("training", "evaluation"), sets):
            print(*examine(title, part), sep="\n")
        check(args.data, *sets)
    except InputError as error:
        print(f"training would fail: {error}")
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, parse_args)
