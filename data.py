"""Data sets. Small ones live in memory as one uint8 tensor and are sliced into batches without workers; large ones stay on
disk, and workers decode and crop each image for its batch.

    shapes      embedded, drawn in seconds: 10 classes of objects in simple scenes
    cifar10     CIFAR-10 through torchvision
    folder      PATH/train/<class>/* with PATH/val/ or PATH/test/, or any tree of images without labels
    imagenet    on disk: PATH/train/<class>/* and PATH/val/<class>/*
    imagenet22k on disk: PATH/<class>/*, to search on: it has no evaluation part
    cityscapes  on disk: PATH/leftImg8bit/{train,val}/<city>/* and for masks PATH/gtFine/{train,val}/<city>/*

As a script it is a data doctor: it loads a data set as training does (at --size, 32 if not given), prints what it found, and
exits with 1 if training on it would fail.

    python data.py --dataset folder --data my_photos/ --size 64
    python data.py --dataset cifar10 --data data/ --download
"""

import argparse
import copy
import hashlib
import os
import signal
import sys
import warnings
from collections import Counter
from contextlib import nullcontext
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import errors
from errors import InputError, at_least
from files import (
    CITYSCAPES_CLASSES,
    EXTENSIONS,
    PHOTO,
    RAW_IDS,
    TRAIN_IDS,
    cache_locked_for,
    index_of,
    middle_square,
    photo_crop,
    read_mask,
    read_rgb,
    scene_crop,
    try_all,
)  # fmt: skip
from shapes import SHAPES, load_shapes

# The images held out and those of --limit are the same for every --seed, so that seeds differ by training alone and a
# search never sees the images that its cell is evaluated on.
SPLIT_SEED = 0
HELD_OUT_22K = 50_000  # images of the held-out half of ImageNet-22K to evaluate on
HELD_OUT = 0.1  # of the images of a folder that has neither val/ nor test/
MAX_UNREADABLE = 0.25  # of the training images; above it something else is wrong
MAX_BYTES = 16 * 2**30  # of pixels in memory


class ImageSet:
    """In memory: images (N, S, S, 3) uint8 RGB, labels (N,) int64 or None, masks (N, S, S) uint8 or None, the names of the
    classes and the per-channel mean and standard deviation (of values in 0 .. 1) that inputs are normalised with.
    `names` identify the images in the split's hash; `unreadable` lists files left out as (path, reason), `formats` counts
    modes and sizes of the files."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those of ImageNet
    padded_crops, jitter = True, 0.0  # tasks pad and crop the images; strength of their colour jitter
    mask_classes = ()
    why_no_labels = "a folder of images has them as train/<class>/*"
    why_no_masks = "shapes and cityscapes have them"

    def __init__(self, images, labels=None, classes=(), masks=None, names=None):
        self.images, self.labels, self.masks, self.classes = images, labels, masks, list(classes)
        self.names = names or [str(i) for i in range(len(images))]
        self.unreadable, self.formats = [], Counter()

    def __len__(self):
        return len(self.images)

    def subset(self, index):
        """The images of an index tensor, in its order."""
        part = copy.copy(self)
        part.images, part.names = self.images[index], [self.names[i] for i in index.tolist()]
        part.labels = None if self.labels is None else self.labels[index]
        part.masks = None if self.masks is None else self.masks[index]
        part.unreadable, part.formats = [], Counter()
        return part

    def fetch(self, parts, task, seed, device):
        targets = {"labels": self.labels, "masks": self.masks, None: None}[task.uses]
        for part in parts:
            yield self.images[part], None if targets is None else targets[part], part


class FileSet:
    """On disk: the files `names` below the folder `root`, decoded when needed by `workers` processes, cropped by the rule
    `crop`. labels (N,) integers or None; masks: a list of paths, or None. `unreadable` grows as files are found to
    be so; `empty` are the folders without images. The rest is as in ImageSet."""

    mean, std = ImageSet.mean, ImageSet.std
    padded_crops, jitter = False, 0.0
    mask_classes = ()
    why_no_labels = "cityscapes has masks alone"
    why_no_masks = ImageSet.why_no_masks

    def __init__(self, root, names, crop, labels=None, classes=(), empty=()):
        self.root, self.names, self.crop, self.labels, self.classes, self.empty = root, names, crop, labels, classes, empty
        self.masks, self.workers, self.broken, self.formats = None, 0, {}, Counter()

    def __len__(self):
        return len(self.names)

    @property
    def unreadable(self):
        return list(self.broken.items())

    def path(self, i):
        return os.path.join(self.root, self.names[i])

    def subset(self, index):
        """The images of an index tensor, in its order."""
        part = copy.copy(self)
        part.names = self.names.subset(index.numpy())
        part.labels = None if self.labels is None else self.labels[index]
        part.masks = None if self.masks is None else [self.masks[i] for i in index.tolist()]
        part.broken, part.formats = {}, Counter()
        return part

    def sample(self, i, task, seed):
        """Image (h, w, 3) and, if the task uses it, mask (h, w), cropped alike; then mode and size of the file."""

        def box_for(W, H):  # called for the image and for the mask: a new generator draws the same again
            rng = None if seed is None else np.random.default_rng([*np.atleast_1d(seed), i])
            return self.crop(W, H, task, rng)

        image, size, found = read_rgb(self.path(i), box_for, tuple(round(255 * m) for m in self.mean))
        return image, read_mask(self.masks[i], size, box_for) if task.uses == "masks" else None, found

    def fetch(self, parts, task, seed, device):
        loader = DataLoader(
            Reader(self, task, seed), batch_size=None, sampler=(part.numpy() for part in parts), num_workers=self.workers,
            multiprocessing_context="fork" if self.workers else None, worker_init_fn=ignore_sigterm,
            pin_memory=torch.device(device).type == "cuda", generator=torch.Generator(), collate_fn=lambda batch: batch,
        )  # fmt: skip
        seen = broken = 0
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            images, masks, index, unreadable = batch
            seen, broken = seen + len(index), broken + len(unreadable)
            for path, reason in unreadable:
                if seed is None:
                    raise InputError(f"{path}: unreadable ({reason}); without it the result would not be comparable")
                if path not in self.broken and len(self.broken) < 5:
                    print(f"left out, unreadable: {path} ({reason})", flush=True)
                self.broken[path] = reason
            if images is None:
                raise InputError(f"a whole batch of {len(index)} images is unreadable, first {unreadable[0][0]}")
            if broken > max(10, MAX_UNREADABLE * seen):
                raise InputError(f"{broken} of {seen} images below {self.root} are unreadable, first {unreadable[0][0]}")
            yield images, self.labels[index].long() if task.uses == "labels" else masks, index

    def examine(self, most=1000):
        """Decodes a seeded choice of the images, so that `formats` and `unreadable` tell of them."""
        task = SimpleNamespace(uses=None if self.masks is None else "masks", crop="area", size=64)
        chosen = choose(len(self), most).tolist()
        for i, (found, error) in zip(chosen, try_all(lambda i: self.sample(i, task, None)[2], chosen)):
            if error is None:
                self.formats[found] += 1
            else:
                self.broken[self.path(i)] = error


def ignore_sigterm(worker):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is for the process that trains, and ends its workers when it is done


class Reader:
    """The batches of a FileSet as the items of a data set for torch's DataLoader, each named by its indices."""

    def __init__(self, data, task, seed):
        self.data, self.task, self.seed = data, task, seed

    def __getitem__(self, index):
        """images (B, h, w, 3), masks (B, h, w) or None, indices (B,), [(path, reason) of what is unreadable]; images of the
        same batch stand in for those. An InputError is returned, as one raised in a worker arrives with its traceback."""
        samples, unreadable = [], []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about broken tags and large images
            for i in index.tolist():
                try:
                    samples.append((*self.data.sample(i, self.task, self.seed)[:2], i))
                except InputError as error:
                    return error
                except Exception as error:  # Pillow raises many types on a damaged file
                    unreadable.append((self.data.path(i), str(error) or type(error).__name__))
        if not samples:
            return None, None, torch.from_numpy(index), unreadable
        images, masks, index = zip(*islice(cycle(samples), len(index)))
        masks = torch.from_numpy(np.stack(masks)) if self.task.uses == "masks" else None
        return torch.from_numpy(np.stack(images)), masks, torch.tensor(index), unreadable


def load(name: str, path=None, size: int = 32, limit: int | None = None, download=False, workers: int | None = 0):
    """(training set, evaluation set or None) of a data set; `limit` keeps a seeded choice of at most that many images of
    each. `workers` processes decode what is on disk; None: as many as CPU cores for each rank, at most 8."""
    train, test = read(name, path, size, limit, download)
    check(path, train, test)
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    train.workers = workers
    if test is not None:
        test.workers = workers
    return train, test


def read(name, path, size, limit, download):
    """As `load`, whatever could be read of it."""
    if name == "shapes" and path is not None:
        raise InputError(f"--data {path}: of which kind? --dataset folder or --dataset cifar10")
    if name != "shapes" and path is None:
        raise InputError(f"--dataset {name} needs --data PATH")
    if name == "folder":
        return read_folder(Path(path), size, limit)  # which applies the limit before it decodes
    if name in ON_DISK:
        sets = ON_DISK[name](Path(path))
        return tuple(part.subset(choose(len(part), limit)) if part is not None and limit else part for part in sets)
    if size not in (8, 16, 32):
        raise InputError(
            f"--size {size}: the images of {name} are 32 x 32; also 16 and 8, the means of 2 x 2 and 4 x 4 pixels"
        )
    if name == "shapes":
        sets = read_shapes(2000, seed=SPLIT_SEED), read_shapes(500, seed=SPLIT_SEED + 1)
    else:
        sets = load_cifar10(path, train=True, download=download), load_cifar10(path, train=False, download=download)
    sets = tuple(part.subset(choose(len(part), limit)) for part in sets)
    for part in sets if size < 32 else ():
        blocks = part.images.view(len(part), size, 32 // size, size, 32 // size, 3)
        part.images = blocks.float().mean((2, 4)).round().byte()  # (N, size, size, 3)
        if part.masks is not None:  # the pixel next to the middle of each block
            part.masks = part.masks[:, 16 // size :: 32 // size, 16 // size :: 32 // size]  # (N, size, size)
    return sets


def check(path, train, test):
    """InputError if the sets are not fit to train on."""
    if test is not None and test.unreadable:  # a metric over fewer images would not be comparable
        raise InputError(f"{len(test.unreadable)} unreadable files in the evaluation part, first {test.unreadable[0][0]}: "
                         "mend or remove them")  # fmt: skip
    broken, total = len(train.unreadable), len(train.unreadable) + train.formats.total()
    if broken > MAX_UNREADABLE * total:
        raise InputError(f"{broken} of {total} images below {path} are unreadable, first {train.unreadable[0][0]}")
    if len(train) < 2 or test is not None and not len(test):
        raise InputError(f"{path}: {len(train)} images to train and {len(test or [])} to evaluate are not enough")


def choose(n: int, limit: int | None) -> torch.Tensor:
    """Sorted indices of a seeded choice of min(n, limit) out of n."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return order[:limit].sort().values


def halves(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A seeded split of n images into two halves of equal size (an odd one is left out), as sorted indices."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: n // 2].sort().values, order[n // 2 : n // 2 * 2].sort().values


def split_hash(*parts):
    """12 hex digits that stand for which images are used for what; a part is a data set, an index tensor or None."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(part.numpy().tobytes())
        elif isinstance(part, FileSet):
            digest.update(part.names.buffer)
            digest.update(part.names.rows.tobytes())
        elif part is not None:
            digest.update(os.fsencode("\n".join(part.names)))
        digest.update(b"\n\n")
    return digest.hexdigest()[:12]


def order_of(index, batch_size, seed):
    """The order of an epoch: (batches, batch_size), the images of an index tensor in seeded random order, without a last
    smaller batch. All ranks draw the same; torch's own random state is neither used nor changed."""
    order = np.random.default_rng(seed).permutation(len(index))[: len(index) // batch_size * batch_size]
    return index[torch.from_numpy(order)].view(-1, batch_size)


def batches(data, task, batch_size: int, device, index: torch.Tensor | None = None, seed=None, skip=0):
    """Yields images uint8 (B, 3, H, W), what `task.uses` of "labels" (B,) and "masks" (B, H, W), else None, and their
    indices (B,) in the data set; `index` restricts it to a part. With a seed (integers): in random order, the first `skip`
    batches left out. Without: for evaluation, each image once. Under torchrun `batch_size` counts the images of all ranks,
    of which each rank gets its share. Images on disk are cropped to `task.size` as `task.crop` says, at random with a seed;
    with masks they are evaluated whole, in batches of one, as their sizes may differ."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    index = torch.arange(len(data)) if index is None else index
    if seed is None:
        whole = isinstance(data, FileSet) and task.uses == "masks"
        parts = index[rank::world].split(1 if whole else max(1, batch_size // world))
    else:
        parts = order_of(index, batch_size, seed)[skip:].chunk(world, 1)[rank]
    for images, targets, part in data.fetch((part for part in parts if len(part)), task, seed, device):
        images = images.to(device, non_blocking=True).permute(0, 3, 1, 2)  # (B, 3, H, W), channels_last
        targets = None if targets is None else targets.to(device, non_blocking=True)
        yield images, targets, part.to(device, non_blocking=True)


# ---------------------------------------------------------------------------------------------------------------------
# shapes and cifar10


def read_shapes(n, seed):
    images, labels, masks = load_shapes(n, seed)
    data = ImageSet(images, labels, SHAPES, masks)
    data.mask_classes = ["sky", "ground", *SHAPES]
    return data


def load_cifar10(path, train, download):
    from torchvision.datasets import CIFAR10  # here, as nothing else needs its import time

    try:
        with cache_locked_for(path) if download else nullcontext():  # of all ranks one fetches it
            source = CIFAR10(path, train=train, download=download)
    except RuntimeError:  # not there, or not what its checksum says
        hint = "" if download else "; --download fetches it"
        raise InputError(f"no CIFAR-10 (cifar-10-batches-py/) in {path}{hint}") from None
    except OSError as error:  # URLError is one
        raise InputError(f"could not download CIFAR-10 to {path} ({error}); without internet put "
                         "cifar-10-python.tar.gz there") from None  # fmt: skip
    data = ImageSet(torch.from_numpy(source.data), torch.tensor(source.targets), source.classes)
    data.mean, data.std = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)
    return data


# ---------------------------------------------------------------------------------------------------------------------
# folder


def list_images(root):
    """Image files below a folder as sorted paths relative to it, hidden files and folders left out."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [s for s in subfolders if not s.startswith(".")]
        relative = Path(folder).relative_to(root)
        found += [relative / f for f in files if Path(f).suffix.lower() in EXTENSIONS and not f.startswith(".")]
    return sorted(found, key=lambda p: p.as_posix())


def read_images(root, files, size):
    """An ImageSet of those files that can be read."""
    needed = len(files) * size * size * 3
    if needed > MAX_BYTES:
        raise InputError(f"{len(files)} images of {size} x {size} take {needed / 2**30:.0f} GiB of memory; "
                         "use --limit or a smaller --size")  # fmt: skip
    images = np.empty((len(files), size, size, 3), np.uint8)
    readable, unreadable, formats = [], [], Counter()

    def read(k):
        images[k], _, found = read_rgb(root / files[k], lambda W, H: middle_square(W, H, size))
        return found

    for k, (found, error) in enumerate(try_all(read, range(len(files)))):
        if error is None:
            readable.append(k)
            formats[found] += 1
        else:
            unreadable.append((str(root / files[k]), error))
    data = ImageSet(torch.from_numpy(images[readable] if unreadable else images), names=[str(files[k]) for k in readable])
    data.unreadable, data.formats = unreadable, formats
    return data


def read_folder(root, size, limit):
    """(training set, evaluation set) of a folder, whatever could be read of it."""
    if not root.is_dir():
        raise InputError(f"--data {root}: no such folder")
    train_root = root / "train" if (root / "train").is_dir() else root
    test_root = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    files = list_images(train_root)
    if train_root == root and test_root:  # images beside val/ or test/
        files = [f for f in files if f.parts[0] != test_root.name]
    test_files = list_images(test_root) if test_root else []
    if not files:
        raise InputError(f"{train_root}: no images ({', '.join(sorted(EXTENSIONS))})")
    if test_root and not test_files:
        raise InputError(f"{test_root}: no images; without the folder a part of the others is held out for evaluation")

    stray = [f for f in files + test_files if len(f.parts) == 1]  # outside the folders of the classes
    labelled = train_root != root and not stray
    classes = sorted({f.parts[0] for f in files}) if labelled else []
    new = sorted({f.parts[0] for f in test_files} - set(classes)) if labelled else []
    if new:
        raise InputError(f"{test_root}: classes that {train_root} does not have: {', '.join(new[:5])}")
    if not test_root:
        held_out = set(choose(len(files), max(1, round(HELD_OUT * len(files)))).tolist())
        test_files = [f for i, f in enumerate(files) if i in held_out]
        files = [f for i, f in enumerate(files) if i not in held_out]

    sets = []
    for folder, part in ((train_root, files), (test_root or train_root, test_files)):
        data = read_images(folder, [part[i] for i in choose(len(part), limit).tolist()], size)
        if labelled:
            data.classes = classes
            labels = [classes.index(Path(name).parts[0]) for name in data.names]
            data.labels = torch.tensor(labels, dtype=torch.int64)
        elif train_root != root:
            data.why_no_labels = f"{stray[0]} is not in the folder of a class"
        sets.append(data)
    train, test = sets
    if not test_root:  # one folder, of which some files are unreadable
        train.unreadable, test.unreadable = train.unreadable + test.unreadable, []
    return train, test


# ---------------------------------------------------------------------------------------------------------------------
# imagenet, imagenet22k, cityscapes


def read_classes(root):
    """A folder of images for each class."""
    names, folder, folders = index_of(root)
    counts = np.bincount(folder, minlength=len(folders))
    numbers = np.cumsum(counts > 0, dtype=np.int32) - 1  # of the folders' classes
    classes, empty = ([f for f, count in zip(folders, counts) if bool(count) == has_images] for has_images in (True, False))
    labels = torch.from_numpy(numbers[folder] if empty else folder)
    data = FileSet(root, names, photo_crop, labels, classes, empty)
    data.jitter = 0.1
    return data


def read_imagenet(root):
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise InputError(f"--data {root}: no folders train/ and val/, each with a folder of images for each class")
    train, test = read_classes(root / "train"), read_classes(root / "val")
    number = {name: i for i, name in enumerate(train.classes)}
    new = [name for name in test.classes if name not in number]
    if new:
        raise InputError(f"{root / 'val'}: classes that {root / 'train'} does not have: {', '.join(new[:5])}")
    test.labels = torch.tensor([number[name] for name in test.classes])[test.labels.long()]
    test.classes = train.classes
    return train, test


def read_imagenet22k(root):
    return read_classes(root), None


def read_cityscapes(root):
    sets, problems = [], []
    for part in ("train", "val"):
        images, masks = root / "leftImg8bit" / part, root / "gtFine" / part
        names = index_of(images)[0]
        names = names.subset(np.array([i for i, name in enumerate(names) if name.endswith(PHOTO)], np.int64))
        if not len(names):
            raise InputError(f"{images}: no <city>/*{PHOTO}")
        data = FileSet(images, names, scene_crop)
        data.mask_classes = CITYSCAPES_CLASSES
        sets.append(data)
        try:
            found = list(index_of(masks)[0])
        except InputError as error:
            problems.append(str(error))
            continue
        of = {name.removesuffix(kind): name for kind in (RAW_IDS, TRAIN_IDS) for name in found if name.endswith(kind)}
        stems = [name.removesuffix(PHOTO) for name in names]
        for what, which, folder in (
            ("images have no mask", [s for s in stems if s not in of], images),
            ("masks have no image", sorted(of.keys() - stems), masks),
        ):
            if which:
                problems.append(f"{len(which)} {what}, first {folder / which[0]}*")
        data.masks = [os.path.join(masks, of[stem]) for stem in stems if stem in of]
    if problems:  # in either part: what is trained is evaluated
        for data in sets:
            data.masks, data.why_no_masks = None, "; ".join(problems)
    return sets


ON_DISK = {"imagenet": read_imagenet, "imagenet22k": read_imagenet22k, "cityscapes": read_cityscapes}

# ---------------------------------------------------------------------------------------------------------------------


def add_arguments(group):
    """The options that name a data set."""
    group.add_argument("--dataset", choices=["shapes", "cifar10", "folder", *ON_DISK], default="shapes",
                       help="shapes is embedded")  # fmt: skip
    group.add_argument("--data", metavar="PATH", help="the folder of images, or where cifar10 is or goes to")
    group.add_argument("--workers", type=at_least(0, int), metavar="N",
                       help="processes that decode images, for each rank; data sets in memory need none (default: as many "
                       "as CPU cores for each rank, at most 8)")  # fmt: skip
    group.add_argument("--download", action="store_true", help="fetch cifar10 if it is not there")
    group.add_argument("--limit", type=at_least(2, int), metavar="N", help="use a seeded choice of N images of each part")
    group.add_argument("--size", type=at_least(1, int), metavar="PIXELS", help="side of the square images or crops")


def print_unreadable(*sets, most=5):
    for path, reason in [entry for data in sets for entry in data.unreadable][:most]:
        print(f"left out, unreadable: {path} ({reason})")
    total = sum(len(data.unreadable) for data in sets)
    if total > most:
        print(f"... and {total - most} more; python data.py lists them")


def report(train, test):
    """What was found, as lines of text."""
    for title, data in (("training", train), ("evaluation", test)):
        if data is None:
            yield f"{title}: this data set has no such part"
            continue
        yield f"{title}: {len(data)} images"
        if data.labels is not None:
            counts = data.labels.bincount(minlength=len(data.classes)).tolist()
            if len(counts) > 50:
                yield f"  {min(counts)} to {max(counts)} in each of {len(counts)} classes"
            else:
                yield from (f"  {name}: {count}" for name, count in zip(data.classes, counts))
        if isinstance(data, FileSet):
            yield from (f"  no images in folder {name}" for name in data.empty)
            data.examine()
            yield f"  decoded {data.formats.total() + len(data.unreadable)} of them"
        for path, reason in data.unreadable:
            yield f"  unreadable: {path} ({reason})"
    formats = train.formats + (test.formats if test else Counter())
    if formats:
        yield f"modes and sizes: {len(formats)} different, the most frequent:"
        yield from (f"  {count} of {name}" for name, count in formats.most_common(10))
    yield "labels: " + (f"{len(train.classes)} classes" if train.labels is not None else "none (tasks rot, col and jig)")
    yield "masks: " + (f"{len(train.mask_classes)} classes" if train.masks is not None else f"none ({train.why_no_masks})")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Check a data set: counts, sizes, unreadable files.")
    add_arguments(parser)
    return parser.parse_args(argv)


def main(args):
    try:
        train, test = read(args.dataset, args.data, args.size or 32, args.limit, args.download)
        print("\n".join(report(train, test)))
        check(args.data, train, test)
    except InputError as error:
        print(f"training would fail: {error}")
        sys.exit(1)


if __name__ == "__main__":
    errors.run(main, parse_args())
