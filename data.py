"""Data sets. Small ones lie in memory as one uint8 tensor and are sliced into batches; large ones
stay on disk (image_files.py), and workers decode and crop each image for its batch.

    shapes       embedded, drawn in seconds: 10 classes of objects in simple scenes
    cifar10      CIFAR-10 through torchvision, downloaded to PATH if it is not there
    folder       PATH/train/<class>/* with PATH/val/ or PATH/test/, or any tree of images
    imagenet     on disk: PATH/train/<class>/* and PATH/val/<class>/*
    imagenet22k  on disk: PATH/<class>/*, to search on: it has no evaluation part
    cityscapes   on disk: PATH/leftImg8bit/{train,val}/<city>/*, masks in PATH/gtFine/{train,val}

As a script it is a data doctor: it loads a data set as training does, prints what it found, and
exits with 1 if training on it would fail.

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
from PIL import Image

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
# The --size of a folder, if none is given: the largest that its photos fill and that takes a
# quarter of MAX_BYTES at most. At 160 the ImageNet stem divides by 8 first, and a step of a search
# takes 0.3 of the time of one at 32 (on a CPU); below 144 a jigsaw's tiles would be too small.
SIZES = 32, 160


class ImageSet(DataSet):
    """In memory: images (N, S, S, 3) uint8 RGB."""

    padded_crops = True
    per_image = ("images", *DataSet.per_image)

    def __init__(self, images, labels=None, classes=(), masks=None, names=None):
        super().__init__(names or [str(i) for i in range(len(images))], labels, classes, masks)
        self.images = images

    @property
    def size(self):
        return self.images.shape[1]

    def resize(self, size):
        """Scales the images to a half or a quarter of their size."""
        whole, block = self.size, self.size // size
        if size == whole:
            return
        if size * block != whole or block not in (2, 4):
            scales = f"{whole // 2} and {whole // 4}, the means of 2 x 2 and 4 x 4 pixels"
            raise InputError(f"--size {size}: the images are {whole} x {whole}; also {scales}")
        blocks = self.images.view(len(self), size, block, size, block, 3)
        self.images = blocks.float().mean((2, 4)).round().byte()  # (N, size, size, 3)
        if self.masks is not None:  # the pixel next to the middle of each block
            self.masks = self.masks[:, block // 2 :: block, block // 2 :: block]

    def fetch(self, parts, view, seed, device):
        targets = getattr(self, view.targets) if view.targets else None
        for index in parts:
            yield self.images[index], None if targets is None else targets[index], index

    def content(self):
        return [os.fsencode("\n".join(self.names))]

    def examine(self, index):
        return []


def load(name: str, path=None, size: int | None = None, limit: int | None = None, workers=0):
    """(training set, evaluation set or None), of each at most `limit` images, chosen with a fixed
    seed. `workers` processes decode what is on disk; None: one a CPU core and rank, at most 8."""
    train, test = read(name, path, size, limit)
    check(path, train, test)
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    for part in filter(None, (train, test)):
        part.workers = workers
    return train, test


def read(name, path, size, limit):
    """As `load`, whatever could be read of it."""
    if name == "shapes" and path is not None:
        raise InputError(f"--data {path}: of which kind? --dataset folder or --dataset cifar10")
    if name != "shapes" and path is None:
        raise InputError(f"--dataset {name} needs --data PATH")
    sets = []
    for part in DATASETS[name](Path(path or ""), size, limit):
        if part is not None and limit and limit < len(part):
            part = part.subset(random_subset(len(part), limit))
        if part is not None and size:
            part.resize(size)
        sets.append(part)
    return sets


def check(path, train, test):
    """InputError if the sets are not fit to train on."""
    if test is not None and test.unreadable:  # a metric over fewer images would not be comparable
        bad = f"{len(test.unreadable)} unreadable files in the evaluation part"
        raise InputError(f"{bad}, first {next(iter(test.unreadable))}: mend or remove them")
    bad, total = len(train.unreadable), len(train.unreadable) + train.formats.total()
    if bad > image_files.MAX_UNREADABLE * total:
        bad = f"{bad} of {total} images below {path} are unreadable"
        raise InputError(f"{bad}, first {next(iter(train.unreadable))}")
    if len(train) < 2 or test is not None and not len(test):
        counts = f"{len(train)} images to train and {len(test or [])} to evaluate"
        raise InputError(f"{path}: {counts} are not enough")


# --------------------------------------------------------------------------------------------------
# Splits and batches


def random_subset(n: int, size: int | None) -> torch.Tensor:
    """Sorted indices of min(n, size) out of n images, chosen at random but always the same."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return order[:size].sort().values


def split_in_half(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random halves of n images as sorted indices, of equal size (an odd image is left out): in
    a search one for the weights w and one for the alphas."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: n // 2 * 2].view(2, -1).sort().values.unbind()


def split_hash(*parts):
    """12 hex digits for which images do what; a part is a data set, an index tensor or None."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(part.numpy())
        elif part is not None:
            for piece in part.content():
                digest.update(piece)
        digest.update(b"\n\n")
    return digest.hexdigest()[:12]


def batches(dataset, view: View, batch_size: int, device, index=None, seed=None, skip=0):
    """Yields images uint8 (B, 3, H, W), the view's labels (B,), masks (B, H, W) or None, and the
    indices (B,) of the images; `index` is a tensor of those to use. With a seed (integers): in
    random order, without a last smaller batch, the first `skip` left out, and with random crops of
    images on disk. Without: for evaluation, each image once, scenes with masks whole and one by
    one. `batch_size` counts the images of all ranks, of which each gets its share."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    index = torch.arange(len(dataset)) if index is None else index
    if seed is None:
        whole = dataset.whole_masks and view.targets == "masks"
        parts = index[rank::world].split(1 if whole else max(1, batch_size // world))
    else:  # the same order for all ranks; torch's state is not touched
        order = np.random.default_rng(seed).permutation(len(index))
        order = torch.from_numpy(order[: len(index) // batch_size * batch_size])
        parts = index[order].view(-1, batch_size)[skip:].chunk(world, 1)[rank]
    parts = (part for part in parts if len(part))
    for images, targets, part in dataset.fetch(parts, view, seed, device):
        images = images.to(device, non_blocking=True)
        targets = None if targets is None else targets.to(device, non_blocking=True)
        # images (B, 3, H, W), channels_last
        yield images.permute(0, 3, 1, 2), targets, part.to(device, non_blocking=True)


# --------------------------------------------------------------------------------------------------
# Reading each data set in memory


def read_shapes(*_):
    for part, n in enumerate((2000, 500)):
        images, labels, masks = load_shapes(n, SPLIT_SEED + part)
        dataset = ImageSet(images, labels, SHAPES, masks)
        dataset.mask_classes = ["sky", "ground", *SHAPES]
        yield dataset


def read_cifar10(path, *_):
    from torchvision.datasets import CIFAR10  # here, as nothing else needs its import time

    def parts(download):
        return [CIFAR10(path, train=train, download=download) for train in (True, False)]

    try:
        sources = parts(download=False)
    except RuntimeError:  # not there, or not what its checksums say
        print(f"CIFAR-10 is not in {path}: downloading it (170 MB)", flush=True)
        try:
            path.mkdir(parents=True, exist_ok=True)
            with FileLock(path / "cifar10.lock"):  # of all ranks one fetches it
                sources = parts(download=True)
        except (OSError, RuntimeError) as error:
            hint = f"put cifar-10-python.tar.gz into {path}"
            raise InputError(f"no download of CIFAR-10 ({error}); {hint}") from None
    for source in sources:
        images, labels = torch.from_numpy(source.data), torch.tensor(source.targets)
        dataset = ImageSet(images, labels, source.classes)
        dataset.mean, dataset.std = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)
        yield dataset


def read_folder(root, size, limit):
    """Whatever could be read of the training and the evaluation part of a folder."""
    if not root.is_dir():
        raise InputError(f"--data {root}: no such folder")
    found, left_out = list_images(root)
    train_root = root / "train" if (root / "train").is_dir() else root
    val_roots = root / "val", root / "test"
    test_root = next((folder for folder in val_roots if folder.is_dir()), None)
    test_paths = [f for f in found if test_root in f.parents]
    paths = [f for f in found if train_root in f.parents and not {*val_roots} & {*f.parents}]
    if not paths:
        raise InputError(f"{train_root}: no images ({', '.join(sorted(image_files.EXTENSIONS))})")
    left_out["outside the folders that are used"] = len(found) - len(paths) - len(test_paths)

    classes, notes = [], []
    stray = [f for f in paths + test_paths if f.parent in (train_root, test_root)]
    if train_root != root and not stray:
        classes = sorted({f.relative_to(train_root).parts[0] for f in paths})
        test_classes = {f.relative_to(test_root).parts[0] for f in test_paths}
        image_files.check_classes(test_root, test_classes, classes)
    if not size:
        size, *notes = fitting_size(paths)
    if not test_root:
        held_out = random_subset(len(paths), max(1, round(HELD_OUT * len(paths)))).tolist()
        test_paths = [paths[i] for i in held_out]
        paths = sorted({*paths} - {*test_paths}, key=Path.as_posix)

    sets = []
    for folder, part in ((train_root, paths), (test_root or train_root, test_paths)):
        chosen = [part[i] for i in random_subset(len(part), limit).tolist()]
        dataset = read_images(folder, chosen, size)
        left_out["beyond --limit"] += len(part) - len(chosen)
        left_out["unreadable"] += len(dataset.unreadable)
        if classes:
            labels = [classes.index(name.partition("/")[0]) for name in dataset.names]
            dataset.classes, dataset.labels = classes, torch.tensor(labels, dtype=torch.int64)
        elif train_root != root:
            dataset.why_no_labels = f"{stray[0]} is not in the folder of a class"
        sets.append(dataset)
    train, test = sets
    endings = Counter(Path(name).suffix.lower() for name in train.names + test.names)
    counts = f"{len(train)} images to train, {len(test)} to evaluate, {listed(endings)}"
    train.notes = [f"{root}: {counts}", f"left out: {listed(left_out)}", *notes]
    if not test_root:  # one folder, of which some files are unreadable
        train.unreadable, test.unreadable = train.unreadable | test.unreadable, {}
    return sets


def list_images(root):
    """The sorted paths of the image files below a folder, and a Counter of what else there is."""
    images, others = [], Counter()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [s for s in subfolders if not s.startswith(".")]
        for path in (Path(folder, name) for name in names):
            kind = path.suffix.lower() or "without an ending"
            if path.name.startswith("."):
                others["hidden"] += 1
            elif kind in image_files.EXTENSIONS:
                images.append(path)
            else:
                others[kind] += 1
    return sorted(images, key=Path.as_posix), others


def listed(counts):
    """A Counter as text, the most frequent first."""
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {what}" for what, n in by_count if n) or "nothing"


def fitting_size(paths):
    """The one of SIZES for these photos, by the headers of some of them, and a note on it."""

    def shorter_side(path):
        with Image.open(path) as image:
            return min(image.size)

    chosen = [paths[i] for i in random_subset(len(paths), 1000).tolist()]
    sides = sorted(image_files.try_all(shorter_side, chosen)[0].values()) or [0]
    median = sides[len(sides) // 2]
    fitting = [s for s in SIZES if s <= median and 3 * s * s * len(paths) <= MAX_BYTES / 4]
    size = max(fitting, default=SIZES[0])
    found = f"{len(sides)} images: {sides[0]} to {sides[-1]} pixels, median {median}"
    return size, f"size {size}, from the shorter sides of {found}; --size takes another"


def read_images(root, paths, size):
    """An ImageSet of those files that can be read."""
    if (needed := len(paths) * size * size * 3) > MAX_BYTES:
        memory = f"{needed / 2**30:.0f} GiB of memory; use --limit or a smaller --size"
        raise InputError(f"{len(paths)} images of {size} x {size} take {memory}")
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def middle_square(W, H):
        return image_files.middle(W, H, min(W, H), min(W, H), size)

    def read(i):
        images[i], _, found = image_files.read_rgb(paths[i], middle_square)
        return found

    formats, errors = image_files.try_all(read, range(len(paths)))
    if errors:
        images = images[list(formats)]
    names = [paths[i].relative_to(root).as_posix() for i in formats]
    dataset = ImageSet(torch.from_numpy(images), names=names)
    dataset.unreadable = {str(paths[i]): reason for i, reason in errors.items()}
    dataset.formats = Counter(formats.values())
    return dataset


# What reads the training and the evaluation part (or None) of each; it gets --data, --size and
# --limit. What it does not do about size and limit, `read` does afterwards.
DATASETS = {
    "shapes": read_shapes,
    "cifar10": read_cifar10,
    "folder": read_folder,
    "imagenet": image_files.read_imagenet,
    "imagenet22k": lambda root, *_: (image_files.read_classes(root), None),
    "cityscapes": image_files.read_cityscapes,
}

# --------------------------------------------------------------------------------------------------
# The command line


def add_arguments(group):
    """The options that name a data set."""
    limit, size = "use a seeded choice of N images of each part", "side of images or crops"
    add = group.add_argument
    add("--dataset", choices=list(DATASETS), default="shapes", help="shapes is embedded")
    add(
        "--data",
        type=cli.path,
        metavar="PATH",
        help="the folder of images, or where cifar10 is or goes to",
    )
    add("--limit", type=at_least(2, int), metavar="N", help=limit)
    add("--size", type=at_least(1, int), metavar="PIXELS", help=size)


def describe(train, test):
    """What a run says about its data, as lines; `test` may be None."""
    unreadable = train.unreadable | (test.unreadable if test else {})
    lines = [f"left out, unreadable: {path} ({why})" for path, why in unreadable.items()]
    more = [f"... and {len(lines) - 5} more; python data.py lists them"] if len(lines) > 5 else []
    return [*train.notes, *lines[:5], *more]


def examine(train, test):
    """All that the doctor finds, line by line."""
    yield from train.notes
    formats = Counter()
    for title, dataset in (("training", train), ("evaluation", test)):
        if dataset is None:
            yield f"{title}: this data set has no such part"
            continue
        yield f"{title}: {len(dataset)} images"
        if dataset.labels is not None:
            counts = dataset.labels.bincount(minlength=len(dataset.classes)).tolist()
            yield f"  {min(counts)} to {max(counts)} in each of {len(counts)} classes, the first:"
            yield from (f"  {name}: {n}" for name, n in zip(dataset.classes[:50], counts))
        for line in dataset.examine(random_subset(len(dataset), 1000)):
            yield f"  {line}"
        yield from (f"  unreadable: {path} ({why})" for path, why in dataset.unreadable.items())
        formats += dataset.formats
    if formats:
        yield f"modes and sizes: {len(formats)} different, the most frequent:"
        yield from (f"  {count} of {name}" for name, count in formats.most_common(10))
    for what, classes in (("labels", train.classes), ("masks", train.mask_classes)):
        if getattr(train, what) is None:
            yield f"{what}: none ({getattr(train, f'why_no_{what}')})"
        else:
            yield f"{what}: {len(classes)} classes"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Check a data set: counts, unreadable files.")
    add_arguments(parser)
    return parser.parse_args(argv)


def main(args):
    try:
        train, test = read(args.dataset, args.data, args.size, args.limit)
        for line in examine(train, test):
            print(line)
        check(args.data, train, test)
    except InputError as error:
        print(f"training would fail: {error}")
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, parse_args)
