"""Data sets. Small ones live in memory as one uint8 tensor and are sliced into batches without workers; large ones stay on
disk, and workers decode and crop each image for its batch.

    shapes      embedded, drawn in seconds: 10 classes of objects in simple scenes
    cifar10     CIFAR-10 through torchvision
    folder      PATH/train/<class>/* with PATH/val/ or PATH/test/, or any tree of images without labels
    imagenet    on disk: PATH/train/<class>/* and PATH/val/<class>/*
    imagenet22k on disk: PATH/<class>/*, to search on: it has no evaluation part
    cityscapes  on disk: PATH/leftImg8bit/{train,val}/<city>/* and for masks PATH/gtFine/{train,val}/<city>/*

As a script it is a data doctor: it loads a data set as training does, prints what it found, and exits with 1 if training on
it would fail.

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
from PIL import Image
from torch.utils.data import DataLoader

import cli
import files
from cli import InputError, at_least
from shapes import SHAPES, load_shapes

# The images held out and those of --limit are the same for every --seed, so that seeds differ by training alone and a
# search never sees the images that its cell is evaluated on.
SPLIT_SEED = 0
HELD_OUT_22K = 50_000  # images of the held-out half of ImageNet-22K to evaluate on
HELD_OUT = 0.1  # of the images of a folder that has neither val/ nor test/
MAX_UNREADABLE = 0.25  # of the training images; above it something else is wrong
MAX_BYTES = 16 * 2**30  # of pixels in memory
# The --size of a folder, if none is given: the largest that its photos fill and that takes a quarter of MAX_BYTES at most.
# A step of a search at 160, whose ImageNet stem divides by 8 first, takes 0.3 of the time of one at 32, one at 64 five times
# as long (on a CPU). Below 144 a jigsaw's tiles have fewer pixels than the network divides them by; above, memory grows.
SIZES = 32, 160


class ImageSet:
    """In memory: images (N, S, S, 3) uint8 RGB, labels (N,) int64 or None, masks (N, S, S) uint8 or None, the names of the
    classes and the per-channel mean and standard deviation (of values in 0 .. 1) that inputs are normalised with.
    `names` identify the images in the split's hash; `broken` has the files left out, {path: reason}, `formats` counts modes
    and sizes of the files, `notes` are lines about how the data set was read."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those of ImageNet
    padded_crops, jitter = (
        True,
        0.0,
    )  # tasks pad and crop the images; strength of their colour jitter
    mask_classes, notes = (), ()
    why_no_labels = "a folder of images has them as train/<class>/*"
    why_no_masks = "shapes and cityscapes have them"

    def __init__(self, images, labels=None, classes=(), masks=None, names=None):
        self.images, self.labels, self.masks, self.classes = images, labels, masks, list(classes)
        self.names, self.size = names or [str(i) for i in range(len(images))], images.shape[1]
        self.broken, self.formats = {}, Counter()

    def __len__(self):
        return len(self.names)

    @property
    def unreadable(self):
        return list(self.broken.items())

    def subset(self, index):
        """The images of an index tensor, in its order."""
        part = copy.copy(self)
        part.broken, part.formats = {}, Counter()
        for key in ("images", "labels", "masks", "names"):
            values = getattr(self, key)
            if values is not None:
                setattr(
                    part,
                    key,
                    [values[i] for i in index.tolist()]
                    if isinstance(values, list)
                    else values[index],
                )
        return part

    def fetch(self, parts, task, seed, device):
        targets = task.uses and getattr(self, task.uses)
        for part in parts:
            yield self.images[part], None if targets is None else targets[part], part


class FileSet(ImageSet):
    """On disk: the files `names` below the folder `root`, decoded when needed by `workers` processes, cropped by the rule
    `crop`, to `size` where nothing says otherwise. labels (N,) integers or None; masks: a list of paths, or None. `broken`
    grows as files are found to be so; `empty` are the folders without images. The rest is as in ImageSet."""

    padded_crops, size = False, 224

    def __init__(self, root, names, crop, labels=None, classes=(), empty=()):
        self.root, self.names, self.crop, self.labels, self.classes, self.empty = (
            root,
            names,
            crop,
            labels,
            classes,
            empty,
        )
        self.images, self.masks, self.workers, self.broken, self.formats = (
            None,
            None,
            0,
            {},
            Counter(),
        )

    def path(self, i):
        return os.path.join(self.root, self.names[i])

    def sample(self, i, task, seed):
        """Image (h, w, 3) and, if the task uses it, mask (h, w), cropped alike; then mode and size of the file."""

        def box_for(
            W, H
        ):  # called for the image and for the mask: a new generator draws the same again
            rng = None if seed is None else np.random.default_rng([*np.atleast_1d(seed), i])
            return self.crop(W, H, task, rng)

        image, size, found = files.read_rgb(
            self.path(i), box_for, tuple(round(255 * m) for m in self.mean)
        )
        return (
            image,
            files.read_mask(self.masks[i], size, box_for) if task.uses == "masks" else None,
            found,
        )

    def fetch(self, parts, task, seed, device):
        loader = DataLoader(
            Reader(self, task, seed),
            batch_size=None,
            sampler=(part.numpy() for part in parts),
            num_workers=self.workers,
            multiprocessing_context="fork" if self.workers else None,
            collate_fn=lambda batch: batch,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator(),
            # SIGTERM is for the process that trains, which ends its workers when it is done
            worker_init_fn=lambda worker: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        )
        seen = broken = 0
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            images, masks, index, unreadable = batch
            seen, broken = seen + len(index), broken + len(unreadable)
            for path, reason in unreadable:
                if seed is None:
                    raise InputError(
                        f"{path}: unreadable ({reason}); without it the result would not be comparable"
                    )
                if path not in self.broken and len(self.broken) < 5:
                    print(f"left out, unreadable: {path} ({reason})", flush=True)
                self.broken[path] = reason
            if images is None:
                raise InputError(
                    f"a whole batch of {len(index)} images is unreadable, first {unreadable[0][0]}"
                )
            if broken > max(10, MAX_UNREADABLE * seen):
                raise InputError(
                    f"{broken} of {seen} images below {self.root} are unreadable, first {unreadable[0][0]}"
                )
            yield images, self.labels[index].long() if task.uses == "labels" else masks, index

    def examine(self, most=1000):
        """Decodes a seeded choice of the images, so that `formats` and `unreadable` tell of them."""
        task = SimpleNamespace(uses=None if self.masks is None else "masks", crop="area", size=64)
        chosen = choose(len(self), most).tolist()
        for i, (found, error) in zip(
            chosen, files.try_all(lambda i: self.sample(i, task, None)[2], chosen)
        ):
            if error is None:
                self.formats[found] += 1
            else:
                self.broken[self.path(i)] = error


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


def load(
    name: str,
    path=None,
    size: int | None = None,
    limit: int | None = None,
    download=False,
    workers: int | None = 0,
):
    """(training set, evaluation set or None) of a data set; `limit` keeps a seeded choice of at most that many images of
    each. In memory without a size: that of the data set. `workers` processes decode what is on disk; None: as many as CPU
    cores for each rank, at most 8."""
    train, test = read(name, path, size, limit, download)
    check(path, train, test)
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    for part in filter(None, (train, test)):
        part.workers = workers
    return train, test


def read(name, path, size, limit, download):
    """As `load`, whatever could be read of it."""
    if name == "shapes" and path is not None:
        raise InputError(f"--data {path}: of which kind? --dataset folder or --dataset cifar10")
    if name != "shapes" and path is None:
        raise InputError(f"--dataset {name} needs --data PATH")
    sets = []
    for part in DATASETS[name](Path(path or ""), size, limit, download):
        if part is not None and limit and limit < len(part):
            part = part.subset(choose(len(part), limit))
        if part is not None and not isinstance(part, FileSet) and size not in (None, part.size):
            shrink(part, size, name)
        sets.append(part)
    return sets


def shrink(data, size, name):
    """Scales images in memory to a half or a quarter of their size."""
    whole, block = data.size, data.size // size
    if size * block != whole or block not in (2, 4):
        raise InputError(
            f"--size {size}: the images of {name} are {whole} x {whole}; also {whole // 2} and {whole // 4}, "
            "the means of 2 x 2 and 4 x 4 pixels"
        )
    blocks = data.images.view(len(data), size, block, size, block, 3)
    data.images, data.size = blocks.float().mean((2, 4)).round().byte(), size  # (N, size, size, 3)
    if data.masks is not None:  # the pixel next to the middle of each block
        data.masks = data.masks[:, block // 2 :: block, block // 2 :: block]  # (N, size, size)


def check(path, train, test):
    """InputError if the sets are not fit to train on."""
    if test is not None and (
        bad := test.unreadable
    ):  # a metric over fewer images would not be comparable
        raise InputError(
            f"{len(bad)} unreadable files in the evaluation part, first {bad[0][0]}: mend or remove them"
        )
    bad, total = train.unreadable, len(train.unreadable) + train.formats.total()
    if len(bad) > MAX_UNREADABLE * total:
        raise InputError(
            f"{len(bad)} of {total} images below {path} are unreadable, first {bad[0][0]}"
        )
    if len(train) < 2 or test is not None and not len(test):
        raise InputError(
            f"{path}: {len(train)} images to train and {len(test or [])} to evaluate are not enough"
        )


def choose(n: int, limit: int | None) -> torch.Tensor:
    """Sorted indices of a seeded choice of min(n, limit) out of n."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return order[:limit].sort().values


def halves(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A seeded split of n images into two halves of equal size (an odd one is left out), as sorted indices."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: n // 2 * 2].view(2, -1).sort().values.unbind()


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


def batches(
    data, task, batch_size: int, device, index: torch.Tensor | None = None, seed=None, skip=0
):
    """Yields images uint8 (B, 3, H, W), what `task.uses` of "labels" (B,) and "masks" (B, H, W), else None, and their
    indices (B,) in the data set; `index` restricts it to a part. With a seed (integers): in random order, without a last
    smaller batch, the first `skip` left out. Without: for evaluation, each image once. Under torchrun `batch_size` counts
    the images of all ranks, of which each rank gets its share. Images on disk are cropped to `task.size` as `task.crop`
    says, at random with a seed; with masks they are evaluated whole, in batches of one, as their sizes may differ."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    index = torch.arange(len(data)) if index is None else index
    if seed is None:
        whole = isinstance(data, FileSet) and task.uses == "masks"
        parts = index[rank::world].split(1 if whole else max(1, batch_size // world))
    else:
        order = np.random.default_rng(seed).permutation(
            len(index)
        )  # the same for all ranks; torch's state is not touched
        whole = index[torch.from_numpy(order[: len(index) // batch_size * batch_size])].view(
            -1, batch_size
        )
        parts = whole[skip:].chunk(world, 1)[rank]
    for images, targets, part in data.fetch(
        (part for part in parts if len(part)), task, seed, device
    ):
        images = images.to(device, non_blocking=True).permute(
            0, 3, 1, 2
        )  # (B, 3, H, W), channels_last
        targets = None if targets is None else targets.to(device, non_blocking=True)
        yield images, targets, part.to(device, non_blocking=True)


# ---------------------------------------------------------------------------------------------------------------------
# Reading each data set


def read_shapes(*_):
    for part, n in enumerate((2000, 500)):
        images, labels, masks = load_shapes(n, SPLIT_SEED + part)
        data = ImageSet(images, labels, SHAPES, masks)
        data.mask_classes = ["sky", "ground", *SHAPES]
        yield data


def read_cifar10(path, size, limit, download):
    from torchvision.datasets import CIFAR10  # here, as nothing else needs its import time

    try:
        with (
            files.cache_locked_for(path) if download else nullcontext()
        ):  # of all ranks one fetches it
            sources = [CIFAR10(path, train=train, download=download) for train in (True, False)]
    except RuntimeError:  # not there, or not what its checksum says
        hint = "" if download else "; --download fetches it"
        raise InputError(f"no CIFAR-10 (cifar-10-batches-py/) in {path}{hint}") from None
    except OSError as error:  # URLError is one
        raise InputError(
            f"no download of CIFAR-10 ({error}); cifar-10-python.tar.gz in {path} will do, too"
        ) from None
    for source in sources:
        data = ImageSet(torch.from_numpy(source.data), torch.tensor(source.targets), source.classes)
        data.mean, data.std = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)
        yield data


def list_images(root):
    """Image files below a folder as sorted paths relative to it, and how many others there are, by their endings."""
    found, others = [], Counter()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [s for s in subfolders if not s.startswith(".")]
        for path in (Path(folder, name).relative_to(root) for name in names):
            kind = (
                "hidden"
                if path.name.startswith(".")
                else path.suffix.lower() or "without an ending"
            )
            if kind in files.EXTENSIONS:
                found.append(path)
            else:
                others[kind] += 1
    return sorted(found, key=Path.as_posix), others


def fitting_size(paths):
    """The size for these photos, one of SIZES, and from what. It reads the headers of a seeded choice of them."""

    def shorter_side(i):
        with Image.open(paths[i]) as image:
            return min(image.size)

    sides = sorted(
        s
        for s, error in files.try_all(shorter_side, choose(len(paths), 1000).tolist())
        if error is None
    ) or [0]
    median = sides[len(sides) // 2]
    fitting = [s for s in SIZES if s <= median and 3 * s * s * len(paths) <= MAX_BYTES / 4]
    size = max(fitting, default=SIZES[0])
    return size, (
        f"size {size}, from the shorter sides of {len(sides)} images: {sides[0]} to {sides[-1]} pixels, median "
        f"{median}; --size takes another"
    )


def read_images(root, paths, size):
    """An ImageSet of those files that can be read."""
    if (needed := len(paths) * size * size * 3) > MAX_BYTES:
        memory = f"{needed / 2**30:.0f} GiB of memory"
        raise InputError(
            f"{len(paths)} images of {size} x {size} take {memory}; use --limit or a smaller --size"
        )
    images = np.empty((len(paths), size, size, 3), np.uint8)

    def read(k):
        images[k], _, found = files.read_rgb(
            root / paths[k], lambda W, H: files.middle_square(W, H, size)
        )
        return found

    results = files.try_all(read, range(len(paths)))
    readable = [k for k, (_, error) in enumerate(results) if error is None]
    if len(readable) < len(paths):
        images = images[readable]
    data = ImageSet(torch.from_numpy(images), names=[str(paths[k]) for k in readable])
    data.broken = {
        str(root / file): error for file, (_, error) in zip(paths, results) if error is not None
    }
    data.formats = Counter(results[k][0] for k in readable)
    return data


def read_folder(root, size, limit, download):
    """Whatever could be read of the training and the evaluation part of a folder."""
    if not root.is_dir():
        raise InputError(f"--data {root}: no such folder")
    found, others = list_images(root)
    train_root = root / "train" if (root / "train").is_dir() else root
    test_root = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)

    def below(folder):
        return [f.relative_to(folder.name) for f in found if f.parts[0] == folder.name]

    paths = (
        [f for f in found if f.parts[0] not in ("val", "test")]
        if train_root == root
        else below(train_root)
    )
    test_paths = below(test_root) if test_root else []
    if not paths:
        raise InputError(f"{train_root}: no images ({', '.join(sorted(files.EXTENSIONS))})")
    if test_root and not test_paths:
        raise InputError(
            f"{test_root}: no images; without the folder a part of the others is held out for evaluation"
        )
    others["outside the folders that are used"] = len(found) - len(paths) - len(test_paths)

    stray = [
        f for f in paths + test_paths if len(f.parts) == 1
    ]  # outside the folders of the classes
    labelled = train_root != root and not stray
    classes = sorted({f.parts[0] for f in paths}) if labelled else []
    new = sorted({f.parts[0] for f in test_paths} - set(classes)) if labelled else []
    if new:
        raise InputError(
            f"{test_root}: classes that {train_root} does not have: {', '.join(new[:5])}"
        )
    size, *notes = (size,) if size else fitting_size([train_root / f for f in paths])
    if not test_root:
        held_out = set(choose(len(paths), max(1, round(HELD_OUT * len(paths)))).tolist())
        test_paths = [f for i, f in enumerate(paths) if i in held_out]
        paths = [f for i, f in enumerate(paths) if i not in held_out]

    sets = []
    for folder, part in ((train_root, paths), (test_root or train_root, test_paths)):
        chosen = choose(len(part), limit).tolist()
        data = read_images(folder, [part[i] for i in chosen], size)
        others.update({"beyond --limit": len(part) - len(chosen), "unreadable": len(data.broken)})
        if labelled:
            data.classes = classes
            data.labels = torch.tensor(
                [classes.index(Path(name).parts[0]) for name in data.names], dtype=torch.int64
            )
        elif train_root != root:
            data.why_no_labels = f"{stray[0]} is not in the folder of a class"
        sets.append(data)
    train, test = sets
    endings = Counter(Path(name).suffix.lower() for name in train.names + test.names)

    def listed(counts):
        return (
            ", ".join(
                f"{-n} {what}" for n, what in sorted((-n, what) for what, n in counts.items() if n)
            )
            or "nothing"
        )

    train.notes = [
        f"{root}: {len(train)} images to train, {len(test)} to evaluate, {listed(endings)}",
        f"left out: {listed(others)}",
        *notes,
    ]
    if not test_root:  # one folder, of which some files are unreadable
        train.broken, test.broken = train.broken | test.broken, {}
    return sets


def read_classes(root):
    """A folder of images for each class."""
    names, folder, folders = files.index_of(root)
    counts = np.bincount(folder, minlength=len(folders))
    numbers = np.cumsum(counts > 0, dtype=np.int32) - 1  # of the folders' classes
    classes, empty = (
        [f for f, count in zip(folders, counts) if bool(count) == has_images]
        for has_images in (True, False)
    )
    labels = torch.from_numpy(numbers[folder] if empty else folder)
    data = FileSet(root, names, files.photo_crop, labels, classes, empty)
    data.jitter = 0.1
    return data


def read_imagenet(root, *_):
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        raise InputError(
            f"--data {root}: no folders train/ and val/, each with a folder of images for each class"
        )
    train, test = read_classes(root / "train"), read_classes(root / "val")
    number = {name: i for i, name in enumerate(train.classes)}
    new = [name for name in test.classes if name not in number]
    if new:
        raise InputError(
            f"{root / 'val'}: classes that {root / 'train'} does not have: {', '.join(new[:5])}"
        )
    test.labels = torch.tensor([number[name] for name in test.classes])[test.labels.long()]
    test.classes = train.classes
    return train, test


def read_cityscapes(root, *_):
    sets, problems = [], []
    for part in ("train", "val"):
        images, masks = root / "leftImg8bit" / part, root / "gtFine" / part
        names = files.index_of(images)[0]
        names = names[
            np.array([i for i, name in enumerate(names) if name.endswith(files.PHOTO)], np.int64)
        ]
        if not len(names):
            raise InputError(f"{images}: no <city>/*{files.PHOTO}")
        data = FileSet(images, names, files.scene_crop)
        data.mask_classes, data.why_no_labels = (
            files.CITYSCAPES_CLASSES,
            "cityscapes has masks alone",
        )
        sets.append(data)
        try:
            found = list(files.index_of(masks)[0])
        except InputError as error:
            problems.append(str(error))
            continue
        kinds = files.RAW_IDS, files.TRAIN_IDS
        of = {
            name.removesuffix(kind): name for kind in kinds for name in found if name.endswith(kind)
        }
        stems = [name.removesuffix(files.PHOTO) for name in names]
        if without := [stem for stem in stems if stem not in of]:
            problems.append(f"{len(without)} images have no mask, first {images / without[0]}*")
        if without := sorted(of.keys() - stems):
            problems.append(f"{len(without)} masks have no image, first {masks / without[0]}*")
        data.masks = [os.path.join(masks, of[stem]) for stem in stems if stem in of]
    if problems:  # in either part: what is trained is evaluated
        for data in sets:
            data.masks, data.why_no_masks = None, "; ".join(problems)
    return sets


# What reads the training and the evaluation part (or None) of each; it gets --data, --size, --limit and --download. What it
# does not do about size and limit, `read` does afterwards.
DATASETS = {
    "shapes": read_shapes,
    "cifar10": read_cifar10,
    "folder": read_folder,
    "imagenet": read_imagenet,
    "imagenet22k": lambda root, *_: (read_classes(root), None),
    "cityscapes": read_cityscapes,
}


def add_arguments(group):
    """The options that name a data set."""
    group.add_argument(
        "--dataset", choices=list(DATASETS), default="shapes", help="shapes is embedded"
    )
    group.add_argument(
        "--data", metavar="PATH", help="the folder of images, or where cifar10 is or goes to"
    )
    group.add_argument("--download", action="store_true", help="fetch cifar10 if it is not there")
    group.add_argument(
        "--limit",
        type=at_least(2, int),
        metavar="N",
        help="use a seeded choice of N images of each part",
    )
    group.add_argument(
        "--size",
        type=at_least(1, int),
        metavar="PIXELS",
        help="side of images or crops (default: by data)",
    )


def print_found(train, test):
    """What a run says about its data; `test` may be None."""
    broken = train.unreadable + (test.unreadable if test else [])
    for line in [
        *train.notes,
        *(f"left out, unreadable: {path} ({reason})" for path, reason in broken[:5]),
    ]:
        print(line)
    if len(broken) > 5:
        print(f"... and {len(broken) - 5} more; python data.py lists them")


def report(train, test):
    """What was found, as lines of text."""
    yield from train.notes
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
    yield "labels: " + (
        f"{len(train.classes)} classes"
        if train.labels is not None
        else "none (tasks rot, col and jig)"
    )
    yield "masks: " + (
        f"{len(train.mask_classes)} classes"
        if train.masks is not None
        else f"none ({train.why_no_masks})"
    )


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Check a data set: counts, sizes, unreadable files."
    )
    add_arguments(parser)
    return parser.parse_args(argv)


def main(args):
    try:
        train, test = read(args.dataset, args.data, args.size, args.limit, args.download)
        print("\n".join(report(train, test)))
        check(args.data, train, test)
    except InputError as error:
        print(f"training would fail: {error}")
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, parse_args)
