"""Data sets: images as one uint8 tensor in memory, sliced into batches without workers.

    shapes      embedded, drawn in seconds: 10 classes of objects in simple scenes
    cifar10     CIFAR-10 through torchvision
    folder      PATH/train/<class>/* with PATH/val/ or PATH/test/, or any tree of images without labels

As a script it is a data doctor: it loads a data set as training does (at --size, 32 if not given), prints what it found, and
exits with 1 if training on it would fail.

    python data.py --dataset folder --data my_photos/ --size 64
    python data.py --dataset cifar10 --data data/ --download
"""

import argparse
import copy
import hashlib
import os
import sys
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image, ImageOps

import errors
from errors import InputError, at_least
from shapes import SHAPES, load_shapes

# The images held out and those of --limit are the same for every --seed, so that seeds differ by training alone and a
# search never sees the images that its cell is evaluated on.
SPLIT_SEED = 0
HELD_OUT = 0.1  # of the images of a folder that has neither val/ nor test/
MAX_UNREADABLE = 0.25  # of a folder's training images; above it something else is wrong
MAX_BYTES = 16 * 2**30  # of pixels in memory
EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class ImageSet:
    """Images (N, S, S, 3) uint8 RGB, labels (N,) int64 or None, masks (N, S, S) uint8 or None, with the names of the
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


def load(name: str, path=None, size: int = 32, limit: int | None = None, download=False) -> tuple[ImageSet, ImageSet]:
    """(training set, evaluation set) of a data set; `limit` keeps a seeded choice of at most that many images of each."""
    train, test = read(name, path, size, limit, download)
    check(path, train, test)
    return train, test


def read(name, path, size, limit, download):
    """As `load`, whatever could be read of it."""
    if name == "shapes" and path is not None:
        raise InputError(f"--data {path}: of which kind? --dataset folder or --dataset cifar10")
    if name != "shapes" and path is None:
        raise InputError(f"--dataset {name} needs --data PATH")
    if name == "folder":
        return read_folder(Path(path), size, limit)  # which applies the limit before it decodes
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
    if test.unreadable:  # a metric over fewer images would not be comparable
        raise InputError(f"{len(test.unreadable)} unreadable files in the evaluation part, first {test.unreadable[0][0]}: "
                         "mend or remove them")  # fmt: skip
    broken, total = len(train.unreadable), len(train) + len(train.unreadable)
    if broken > MAX_UNREADABLE * total:
        raise InputError(f"{broken} of {total} images below {path} are unreadable, first {train.unreadable[0][0]}")
    if len(train) < 2 or not len(test):
        raise InputError(f"{path}: {len(train)} images to train and {len(test)} to evaluate are not enough")


def choose(n: int, limit: int | None) -> torch.Tensor:
    """Sorted indices of a seeded choice of min(n, limit) out of n."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return order[:limit].sort().values


def halves(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A seeded split of n images into two halves of equal size (an odd one is left out), as sorted indices."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: n // 2].sort().values, order[n // 2 : n // 2 * 2].sort().values


def split_hash(*parts):
    """12 hex digits that stand for which images are used for what; a part is an ImageSet or an index tensor."""
    digest = hashlib.sha256()
    for part in parts:
        text = os.fsencode("\n".join(part.names)) if isinstance(part, ImageSet) else part.numpy().tobytes()
        digest.update(text + b"\n\n")
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
    of which each rank gets its share."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    index = torch.arange(len(data)) if index is None else index
    if seed is None:
        parts = index[rank::world].split(max(1, batch_size // world))
    else:
        parts = order_of(index, batch_size, seed)[skip:].chunk(world, 1)[rank]
    targets = {"labels": data.labels, "masks": data.masks, None: None}[task.uses]
    for part in parts:
        images = data.images[part].to(device).permute(0, 3, 1, 2)  # (B, 3, S, S), channels_last
        yield images, None if targets is None else targets[part].to(device), part.to(device)


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


def read_image(path, size):
    """Any image file as uint8 (size, size, 3): upright by its EXIF tag, RGB, the central square resized. Also its mode and
    size in the file. Raises whatever Pillow does on a broken file."""
    with Image.open(path) as image:
        found = f"{image.mode} {image.width} x {image.height}"
        image.draft("RGB", (size, size))  # JPEG: decode at a reduced scale that is still large enough
        image.load()
        try:
            image = ImageOps.exif_transpose(image)
        except Exception:  # Pillow fails in many ways on a broken tag; the image itself is fine
            pass
        if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):  # convert("RGB") would clip these at 255
            pixels = np.asarray(image, np.float32)
            top = 1 if image.mode == "F" and pixels.max() <= 1 else 255 if pixels.max() <= 255 else 65535
            image = Image.fromarray((pixels * (255 / top)).clip(0, 255).astype(np.uint8))
        image = image.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box, reducing_gap=3.0)), found


def read_images(root, files, size):
    """An ImageSet of those files that can be read."""
    needed = len(files) * size * size * 3
    if needed > MAX_BYTES:
        raise InputError(f"{len(files)} images of {size} x {size} take {needed / 2**30:.0f} GiB of memory; "
                         "use --limit or a smaller --size")  # fmt: skip
    images = np.empty((len(files), size, size, 3), np.uint8)
    readable, unreadable, formats = [], [], Counter()

    def read(k):
        try:
            images[k], found = read_image(root / files[k], size)
            return found, None
        except Exception as error:  # Pillow raises many types on a damaged file
            return None, str(error) or type(error).__name__

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of Pillow, about broken tags and large images
        for k, (found, error) in enumerate(pool.map(read, range(len(files)))):
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


def add_arguments(group):
    """The options that name a data set."""
    group.add_argument("--dataset", choices=["shapes", "cifar10", "folder"], default="shapes", help="shapes is embedded")
    group.add_argument("--data", metavar="PATH", help="the folder of images, or where cifar10 is or goes to")
    group.add_argument("--download", action="store_true", help="fetch cifar10 if it is not there")
    group.add_argument("--limit", type=at_least(2, int), metavar="N", help="use a seeded choice of N images of each part")
    group.add_argument("--size", type=at_least(1, int), metavar="PIXELS", help="side of the square images")


def print_unreadable(*sets, most=5):
    for path, reason in [entry for data in sets for entry in data.unreadable][:most]:
        print(f"left out, unreadable: {path} ({reason})")
    total = sum(len(data.unreadable) for data in sets)
    if total > most:
        print(f"... and {total - most} more; python data.py lists them")


def report(train, test):
    """What was found, as lines of text."""
    for title, data in (("training", train), ("evaluation", test)):
        yield f"{title}: {len(data)} images"
        if data.labels is not None:
            counts = data.labels.bincount(minlength=len(data.classes)).tolist()
            yield from (f"  {name}: {count}" for name, count in zip(data.classes, counts))
        for path, reason in data.unreadable:
            yield f"  unreadable: {path} ({reason})"
    formats = train.formats + test.formats
    if formats:
        yield f"modes and sizes: {len(formats)} different, the most frequent:"
        yield from (f"  {count} of {name}" for name, count in formats.most_common(10))
    yield "labels: " + (f"{len(train.classes)} classes" if train.labels is not None else "none (tasks rot, col and jig)")


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
