"""Image files: how a part of one is chosen and read, and an index of millions of them."""

import fcntl
import hashlib
import math
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from cli import InputError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}

# Of the 34 ids in the masks of Cityscapes, those of the 19 classes that count, in the order of their train ids
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
CITYSCAPES_CLASSES = [
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
]
TRAIN_ID = np.full(256, 255, np.uint8)  # train id of each id
TRAIN_ID[CITYSCAPES_IDS] = np.arange(len(CITYSCAPES_IDS))
PHOTO, RAW_IDS, TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"

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
UPRIGHT = [
    None,
    None,
    *"FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split(),
]


def resized(image, box, size, resample, fill):
    """That box of an image at that size as an array, filled where the box reaches over the edges."""
    left, top, right, bottom = box
    sx, sy = size[0] / (right - left), size[1] / (bottom - top)
    inner = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    x, y = round((inner[0] - left) * sx), round((inner[1] - top) * sy)
    w, h = round((inner[2] - left) * sx) - x, round((inner[3] - top) * sy) - y
    part = image.resize((w, h), resample, inner, reducing_gap=3.0)
    if (w, h) == size:
        return np.asarray(part)
    canvas = Image.new(image.mode, size, fill)
    canvas.paste(part, (x, y))
    return np.asarray(canvas)


def read_rgb(path, box_for, fill=(0, 0, 0)):
    """Any image file, upright and RGB, as uint8 (h, w, 3): box_for(width, height) gives the box to take and its new size
    (w, h). Also (width, height), and mode and size in the file as text. Raises whatever Pillow does on a broken file."""
    with Image.open(path) as image:
        found = f"{image.mode} {image.width} x {image.height}"
        if image.format not in (
            "JPEG",
            "MPO",
        ):  # before a TIFF's tag is looked at: loading turns it upright
            image.load()
        try:
            orientation = image.getexif().get(ORIENTATION, 1)
            turn = UPRIGHT[orientation]
        except Exception:  # Pillow fails in many ways on a broken tag; the image itself is fine
            orientation, turn = 1, None
        full, turned = image.size, slice(None, None, -1 if orientation >= 5 else 1)
        W, H = full[turned]
        box, size = box_for(W, H)
        enough = (
            math.ceil(W * size[0] / (box[2] - box[0])),
            math.ceil(H * size[1] / (box[3] - box[1])),
        )
        drafted = image.draft(
            "RGB", enough[turned]
        )  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is enough
        shrink = drafted[1][2] / full[0] if drafted else 1
        image.load()
        if turn:
            image = image.transpose(Image.Transpose[turn])
        if image.mode in (
            "I;16",
            "I;16B",
            "I;16L",
            "I",
            "F",
        ):  # convert("RGB") would clip these at 255
            pixels = np.asarray(image, np.float32)
            top = (
                1
                if image.mode == "F" and pixels.max() <= 1
                else 255
                if pixels.max() <= 255
                else 65535
            )
            image = Image.fromarray((pixels * (255 / top)).clip(0, 255).astype(np.uint8))
        if image.mode != "RGB":
            image = image.convert("RGB")
        return (
            resized(image, [shrink * edge for edge in box], size, Image.Resampling.BILINEAR, fill),
            (W, H),
            found,
        )


def read_mask(path, image_size, box_for):
    """A Cityscapes mask as uint8 (h, w): 0 to 18, or 255 where there is no class and beyond the edges of the image."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:
        raise OSError(f"its mask {path}: {error}") from None
    if image.size != image_size or image.mode not in ("L", "P"):
        raise InputError(
            f"{path}: a mask of mode {image.mode}, {image.width} x {image.height}; it must have 8 bits a pixel "
            f"and the size of its image, {image_size[0]} x {image_size[1]}"
        )
    mask = resized(image, *box_for(*image_size), Image.Resampling.NEAREST, 255)
    if str(path).endswith(RAW_IDS):
        return TRAIN_ID[mask]
    if ((mask >= len(CITYSCAPES_IDS)) & (mask != 255)).any():
        raise InputError(
            f"{path}: a mask of train ids has 0 to {len(CITYSCAPES_IDS) - 1} and 255, this one others too"
        )
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
        """A name, or Names for an array of indices."""
        if np.ndim(i):
            return Names(self.buffer, self.starts, self.rows[np.asarray(i)])
        start, end = self.starts[self.rows[i] :][:2]
        return os.fsdecode(self.buffer[start : end - 1].tobytes())


@contextmanager
def cache_locked_for(root):
    """The cache folder and the key of a data set in it. One process at a time is let in; the others wait, and find what it
    has made."""
    key = hashlib.sha256(os.fsencode(f"{os.uname().nodename}:{os.path.abspath(root)}")).hexdigest()[
        :16
    ]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "unnas"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = open(cache / f"{key}.lock", "w")
    except OSError as error:
        raise InputError(
            f"{cache}: {error.strerror}; set XDG_CACHE_HOME to a folder where indexes can be kept"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache, key


INDEX = ("names", "starts", "folder")  # its files


def scan(root, folders):
    """The INDEX of the image files in the folders: names and starts as in Names, and the number of each file's folder."""
    endings, chunks, counts = tuple(os.fsencode(e) for e in EXTENSIONS), [], []
    for folder in folders:
        found = sorted(os.listdir(os.path.join(os.fsencode(root), folder)))
        found = [
            b"%b/%b\0" % (folder, f)
            for f in found
            if f.lower().endswith(endings) and not f.startswith(b".")
        ]
        chunks.append(b"".join(found))
        counts.append(len(found))
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
            stamp.update(
                b"%b/%d/" % (folder, os.stat(os.path.join(os.fsencode(root), folder)).st_mtime_ns)
            )
        with cache_locked_for(root) as (cache, key):
            place = cache / f"{key}-{stamp.hexdigest()[:16]}"
            if not place.is_dir():
                for old in cache.glob(f"{key}-*"):  # also what a killed process left
                    shutil.rmtree(old, ignore_errors=True)
                arrays = scan(root, folders)
                if not len(arrays[0]):
                    raise InputError(
                        f"{root}: no images in its {len(folders)} folders ({', '.join(sorted(EXTENSIONS))})"
                    )
                partial = cache / f"{key}-partial"
                partial.mkdir(exist_ok=True)
                for name, array in zip(INDEX, arrays):
                    np.save(partial / name, array)
                partial.rename(place)
            # Mode "c" is copy on write: nobody writes, but torch wants arrays that could be written.
            names, starts, folder = (
                np.load(place / f"{n}.npy", "c").view(np.ndarray) for n in INDEX
            )
    except OSError as error:
        raise InputError(
            f"{os.fsdecode(error.filename or root)}: {error.strerror or error}"
        ) from None
    return Names(names, starts), folder, [os.fsdecode(f) for f in folders]
