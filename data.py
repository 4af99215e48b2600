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
import fcntl
import hashlib
import math
import os
import shutil
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch.utils.data import DataLoader

import errors
from errors import InputError, at_least
from shapes import SHAPES, load_shapes

# The images held out and those of --limit are the same for every --seed, so that seeds differ by training alone and a
# search never sees the images that its cell is evaluated on.
SPLIT_SEED = 0
HELD_OUT = 0.1  # of the images of a folder that has neither val/ nor test/
MAX_UNREADABLE = 0.25  # of the training images; above it something else is wrong
MAX_BYTES = 16 * 2**30  # of pixels in memory
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


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
            multiprocessing_context="fork" if self.workers else None, pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator(), collate_fn=lambda batch: batch,
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
            if images is None or broken > max(10, MAX_UNREADABLE * seen):
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
        workers = min(8, os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
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
    if test and test.unreadable:  # a metric over fewer images would not be comparable
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
# Crops of images on disk. A rule gets the width and height of an image, the task and, in training, a random generator. It
# returns the box (left, top, right, bottom) to take, which may reach over the edges, and the (w, h) to scale it to.


def window(W, H, w, h, size, rng):
    """A square of that size anywhere in the image scaled to (w, h), without a generator in its middle. Where the image is
    smaller, it likewise lies in the square."""

    def start(room):
        return room // 2 if rng is None else rng.integers(min(room, 0), max(room, 0) + 1)

    x, y = start(w - size), start(h - size)
    return (x * W / w, y * H / h, (x + size) * W / w, (y + size) * H / h), (size, size)


def random_area(W, H, size, rng):
    """A random 0.08 to 1 of the image's area, of random aspect. Szegedy et al. 2015."""
    for _ in range(10):
        area, aspect = W * H * rng.uniform(0.08, 1), math.exp(rng.uniform(-1, 1) * math.log(4 / 3))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= W and h <= H:
            x, y = rng.uniform(0, W - w), rng.uniform(0, H - h)
            return (x, y, x + w, y + h), (size, size)
    w, h = min(W, H * 4 / 3), min(H, W * 4 / 3)  # the middle of a long image
    return ((W - w) / 2, (H - h) / 2, (W + w) / 2, (H + h) / 2), (size, size)


def photo_crop(W, H, task, rng):
    """ImageNet: a random area, evaluated on the middle of the image scaled to 256 for 224; for tiles (Sec. 3.2) a window of
    255 of the image scaled to 256, at other sizes likewise."""
    if task.crop == "area" and rng is not None:
        return random_area(W, H, task.size, rng)
    scale = (task.size + 1 if task.crop == "window" else round(task.size * 8 / 7)) / min(W, H)
    return window(W, H, round(W * scale), round(H * scale), task.size, rng)


def scene_crop(W, H, task, rng):
    """Cityscapes: a window of the image scaled by 0.5 to 2; for evaluation unscaled, and with masks the whole image."""
    if rng is None and task.uses == "masks":
        return (0, 0, W, H), (W, H)
    scale = 1 if rng is None else rng.uniform(0.5, 2)
    return window(W, H, max(1, round(W * scale)), max(1, round(H * scale)), task.size, rng)


def middle_square(W, H, size):
    side = min(W, H)
    return ((W - side) / 2, (H - side) / 2, (W + side) / 2, (H + side) / 2), (size, size)


# ---------------------------------------------------------------------------------------------------------------------
# Reading image files

# What turns an image upright, by the EXIF tag of its orientation; from 5 on it swaps width and height.
ORIENTATION = 0x0112
UPRIGHT = [None, None, *"FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split()]


def resized(image, box, size, resample, fill):
    """That box of an image at that size as an array, filled where the box reaches over the edges."""
    left, top, right, bottom = box
    sx, sy = size[0] / (right - left), size[1] / (bottom - top)
    inner = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    x, y = round((inner[0] - left) * sx), round((inner[1] - top) * sy)
    w, h = round((inner[2] - left) * sx) - x, round((inner[3] - top) * sy) - y
    part = image.resize((w, h), resample, inner, reducing_gap=3.0)
    if (w, h) != size:
        canvas = Image.new(image.mode, size, fill)
        canvas.paste(part, (x, y))
        part = canvas
    return np.asarray(part)


def read_rgb(path, box_for, fill=(0, 0, 0)):
    """Any image file, upright and RGB, as uint8 (h, w, 3): box_for(width, height) gives the box to take and its new size
    (w, h). Also (width, height), and mode and size in the file as text. Raises whatever Pillow does on a broken file."""
    with Image.open(path) as image:
        found = f"{image.mode} {image.width} x {image.height}"
        if image.format not in ("JPEG", "MPO"):  # before a TIFF's tag is looked at: loading turns it upright
            image.load()
        try:
            orientation = image.getexif().get(ORIENTATION, 1)
            turn = UPRIGHT[orientation]
        except Exception:  # Pillow fails in many ways on a broken tag; the image itself is fine
            orientation, turn = 1, None
        full, turned = image.size, slice(None, None, -1 if orientation >= 5 else 1)
        W, H = full[turned]
        box, size = box_for(W, H)
        enough = math.ceil(W * size[0] / (box[2] - box[0])), math.ceil(H * size[1] / (box[3] - box[1]))
        drafted = image.draft("RGB", enough[turned])  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is enough
        shrink = drafted[1][2] / full[0] if drafted else 1
        image.load()
        if turn:
            image = image.transpose(Image.Transpose[turn])
        if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):  # convert("RGB") would clip these at 255
            pixels = np.asarray(image, np.float32)
            top = 1 if image.mode == "F" and pixels.max() <= 1 else 255 if pixels.max() <= 255 else 65535
            image = Image.fromarray((pixels * (255 / top)).clip(0, 255).astype(np.uint8))
        if image.mode != "RGB":
            image = image.convert("RGB")
        return resized(image, [shrink * edge for edge in box], size, Image.Resampling.BILINEAR, fill), (W, H), found


def read_mask(path, image_size, box_for):
    """A Cityscapes mask as uint8 (h, w): 0 to 18, or 255 where there is no class and beyond the edges of the image."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:
        raise OSError(f"its mask {path}: {error}") from None
    if image.size != image_size or image.mode not in ("L", "P"):
        raise InputError(f"{path}: a mask of mode {image.mode}, {image.width} x {image.height}; it must have 8 bits a pixel "
                         f"and the size of its image, {image_size[0]} x {image_size[1]}")  # fmt: skip
    mask = resized(image, *box_for(*image_size), Image.Resampling.NEAREST, 255)
    if str(path).endswith(RAW_IDS):
        return TRAIN_ID[mask]
    if ((mask >= len(CITYSCAPES_IDS)) & (mask != 255)).any():
        raise InputError(f"{path}: a mask of train ids has 0 to {len(CITYSCAPES_IDS) - 1} and 255, this one others too")
    return mask


def try_all(read, items):
    """[(what read(item) returns, None) or (None, why it failed)], several items at a time."""

    def attempt(item):
        try:
            return read(item), None
        except Exception as error:  # Pillow raises many types on a damaged file
            return None, str(error) or type(error).__name__

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of Pillow, about broken tags and large images
        return list(pool.map(attempt, items))


# ---------------------------------------------------------------------------------------------------------------------
# An index of the files of a large data set, scanned once and then memory-mapped, so that all processes share its pages


class Names:
    """A sequence of file names, which are `rows` of all those that lie in one buffer of bytes, each with a zero at its end;
    `starts` has where each begins, and the end of the last."""

    def __init__(self, buffer, starts, rows=None):
        self.buffer, self.starts = buffer, starts
        self.rows = np.arange(len(starts) - 1) if rows is None else rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        start, end = self.starts[self.rows[i] :][:2]
        return os.fsdecode(self.buffer[start : end - 1].tobytes())

    def subset(self, index):
        return Names(self.buffer, self.starts, self.rows[index])


@contextmanager
def cache_locked_for(root):
    """The cache folder and the key of a data set in it. One process at a time is let in; the others wait, and find what it
    has made."""
    key = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "unnas"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = open(cache / f"{key}.lock", "w")
    except OSError as error:
        raise InputError(f"{cache}: {error.strerror}; set XDG_CACHE_HOME to a folder where indexes can be kept") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache, key


INDEX = ("names", "starts", "folder")  # its files


def scan(root, folders):
    """The INDEX of the image files in the folders: names and starts as in Names, and the number of each file's folder."""
    endings, chunks, counts = tuple(os.fsencode(e) for e in EXTENSIONS), [], []
    for folder in folders:
        files = os.listdir(os.path.join(os.fsencode(root), folder))
        files = sorted(f for f in files if f.lower().endswith(endings) and not f.startswith(b"."))
        chunks.append(b"".join(b"%b/%b\0" % (folder, f) for f in files))
        counts.append(len(files))
    names = np.frombuffer(b"".join(chunks), np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(names == 0) + 1])
    return names, starts, np.repeat(np.arange(len(folders), dtype=np.int32), counts)


def index_of(root):
    """(Names, the number of each file's folder (N,) int32, the folders) of the image files in the folders of root. The name
    of the cached index holds what root and its folders are called and when they last changed: a stale one is never used."""
    try:
        with os.scandir(os.fsencode(root)) as entries:
            folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(b"."))
        stamp = hashlib.sha256(repr(sorted(EXTENSIONS)).encode())
        for folder in [b".", *folders]:
            stamp.update(b"%b/%d/" % (folder, os.stat(os.path.join(os.fsencode(root), folder)).st_mtime_ns))
        with cache_locked_for(root) as (cache, key):
            place = cache / f"{key}-{stamp.hexdigest()[:16]}"
            if not place.is_dir():
                for old in cache.glob(f"{key}-*"):  # also what a killed process left
                    shutil.rmtree(old, ignore_errors=True)
                arrays = scan(root, folders)
                if not len(arrays[0]):
                    raise InputError(f"{root}: no images in its {len(folders)} folders ({', '.join(sorted(EXTENSIONS))})")
                partial = cache / f"{key}-partial"
                partial.mkdir(exist_ok=True)
                for name, array in zip(INDEX, arrays):
                    np.save(partial / name, array)
                partial.rename(place)
            # Mode "c" is copy on write: nobody writes, but torch wants arrays that could be written.
            names, starts, folder = (np.load(place / f"{n}.npy", "c").view(np.ndarray) for n in INDEX)
    except OSError as error:
        raise InputError(f"{os.fsdecode(error.filename or root)}: {error.strerror or error}") from None
    return Names(names, starts), folder, [os.fsdecode(f) for f in folders]


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


# Of the 34 ids in the masks of Cityscapes, those of the 19 classes that count, in the order of their train ids
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
CITYSCAPES_CLASSES = [
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
]  # fmt: skip
TRAIN_ID = np.full(256, 255, np.uint8)  # train id of each id
TRAIN_ID[CITYSCAPES_IDS] = np.arange(len(CITYSCAPES_IDS))
PHOTO, RAW_IDS, TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


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
