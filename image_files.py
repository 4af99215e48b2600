"""Image files: how they are decoded and cropped, and the data sets that stay on disk."""

import copy
import hashlib
import math
import os
import platform
import shutil
import signal
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import DataLoader

from cli import InputError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
MAX_UNREADABLE = 0.25  # of the training images; above it something else is wrong


class View(NamedTuple):
    """What a task wants to see of a data set."""

    targets: str | None  # "labels", "masks" or nothing
    crop: str  # of images on disk: "area", a random part of any scale, or "window", of a fixed one
    size: int  # side of the crops in pixels


# --------------------------------------------------------------------------------------------------
# Crops of images on disk. Each gets the size of the image and, in training, a random generator. It
# returns the box (left, top, right, bottom) to take, which may reach over the edges of the image,
# and the (w, h) to scale it to.


def window(W, H, w, h, size, rng):
    """A square of that size anywhere in the image scaled to (w, h), without a generator in its
    middle. Where the image is smaller, it likewise lies in the square."""

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
    return middle(W, H, min(W, H * 4 / 3), min(H, W * 4 / 3), size)  # of a long image


def middle(W, H, w, h, size):
    return ((W - w) / 2, (H - h) / 2, (W + w) / 2, (H + h) / 2), (size, size)


def photo_crop(W, H, view, rng):
    """ImageNet: a random area, evaluated on the middle of the image scaled to 256 for 224; for
    tiles (Sec. 3.2) a window of 255 of the image scaled to 256, at other sizes likewise."""
    if view.crop == "area" and rng is not None:
        return random_area(W, H, view.size, rng)
    scale = (view.size + 1 if view.crop == "window" else round(view.size * 8 / 7)) / min(W, H)
    return window(W, H, round(W * scale), round(H * scale), view.size, rng)


def scene_crop(W, H, view, rng):
    """Cityscapes: a window of the image scaled by 0.5 to 2; for evaluation unscaled, and with masks
    the whole image."""
    if rng is None and view.targets == "masks":
        return (0, 0, W, H), (W, H)
    scale = 1 if rng is None else rng.uniform(0.5, 2)
    return window(W, H, max(1, round(W * scale)), max(1, round(H * scale)), view.size, rng)


# --------------------------------------------------------------------------------------------------
# Decoding


def resized(image, box, size, resample, fill):
    """That box of an image at that size as an array, filled where it reaches over the edges."""
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


def read_rgb(path, crop, fill=(0, 0, 0)):
    """Any image file, upright and RGB: what crop(width, height) takes of it as uint8 (h, w, 3), its
    (width, height), mode and size as text. On a broken file it raises whatever Pillow does."""
    with Image.open(path) as image:
        found, full_width = f"{image.mode} {image.width} x {image.height}", image.width
        if image.format not in ("JPEG", "MPO"):
            image.load()  # turns a TIFF upright, so before its orientation is looked at
        sideways = False
        with suppress(Exception):  # Pillow fails in many ways on a broken tag; the image is fine
            sideways = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        order = -1 if sideways else 1
        W, H = image.size[::order]
        box, size = crop(W, H)
        # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is enough.
        w, h = W * size[0] / (box[2] - box[0]), H * size[1] / (box[3] - box[1])
        drafted = image.draft("RGB", (math.ceil(w), math.ceil(h))[::order])
        scale = drafted[1][2] / full_width if drafted else 1
        image.load()
        with suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
            image = to_8_bits(image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        box = [scale * edge for edge in box]
        return resized(image, box, size, Image.Resampling.BILINEAR, fill), (W, H), found


def to_8_bits(image):
    """An image of 16 bits or of floating point, which convert("RGB") would clip at 255."""
    pixels = np.asarray(image, np.float32)
    white = 255 if pixels.max() <= 255 else 65535
    if image.mode == "F" and pixels.max() <= 1:
        white = 1
    return Image.fromarray((pixels * (255 / white)).clip(0, 255).astype(np.uint8))


# fmt: off
CITYSCAPES = {  # the 19 classes that count: the ids in raw masks, in the order of their train ids
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole",
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky",
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle",
    33: "bicycle",
}
# fmt: on
TRAIN_ID = np.full(256, 255, np.uint8)  # train id of each id
TRAIN_ID[list(CITYSCAPES)] = np.arange(19)
PHOTO, RAW_IDS, TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


def read_mask(path, image_size, crop):
    """What `crop` takes of a Cityscapes mask as uint8 (h, w): 0 to 18, or 255 where there is no
    class and beyond the edges of the image."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception as error:  # Pillow raises many types on a damaged file
        raise OSError(f"its mask {path}: {error}") from None
    if image.size != image_size or image.mode not in ("L", "P"):
        found = f"{path}: a mask of mode {image.mode}, {image.width} x {image.height}"
        wanted = f"8 bits a pixel and the size of its image, {image_size[0]} x {image_size[1]}"
        raise InputError(f"{found}; it must have {wanted}")
    mask = resized(image, *crop(*image_size), Image.Resampling.NEAREST, 255)
    if path.endswith(RAW_IDS):
        return TRAIN_ID[mask]
    if ((mask >= 19) & (mask != 255)).any():
        raise InputError(f"{path}: a mask of train ids has 0 to 18 and 255, this one others too")
    return mask


def try_all(read, items, threads=None):
    """({item: read(item)}, {item: why it failed}), several items at a time."""
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # of Pillow, about broken tags and large images
        futures = {item: pool.submit(read, item) for item in items}
    errors = {item: future.exception() for item, future in futures.items() if future.exception()}
    for error in errors.values():  # Pillow raises many types on a damaged file; this one is ours
        if isinstance(error, InputError):
            raise error
    results = {item: futures[item].result() for item in futures if item not in errors}
    return results, {item: str(e) or type(e).__name__ for item, e in errors.items()}


# --------------------------------------------------------------------------------------------------
# An index of the files of a large data set: scanned once, then memory-mapped by all processes


class Names:
    """A sequence of file names: those numbered `rows` of all that lie in one buffer of bytes, each
    with a zero at its end; `starts` has where each begins, and the end of the last."""

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


INDEX = ("names", "starts", "folder")  # its files


def scan(root, folders):
    """The INDEX of the image files in the folders: names and starts as in Names, and the number of
    each file's folder."""
    endings, chunks, counts = tuple(os.fsencode(e) for e in EXTENSIONS), [], []
    for folder in folders:
        files = sorted(os.listdir(os.path.join(root, folder)))
        files = [f for f in files if f.lower().endswith(endings) and not f.startswith(b".")]
        chunks.append(b"".join(b"%b/%b\0" % (folder, f) for f in files))
        counts.append(len(files))
    names = np.frombuffer(b"".join(chunks), np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(names == 0) + 1])
    return names, starts, np.repeat(np.arange(len(folders), dtype=np.int32), counts)


def index_of(root):
    """(Names, the number of each file's folder (N,) int32, the folders) of the image files in the
    folders of root. The name of the cached index holds what root and its folders are called and
    when they last changed: a stale one is never used."""
    root = os.fsencode(os.path.abspath(root))
    with os.scandir(root) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(b"."))
    stamp = hashlib.sha256(repr(sorted(EXTENSIONS)).encode())
    for folder in [b".", *folders]:
        stamp.update(b"%b/%d/" % (folder, os.stat(os.path.join(root, folder)).st_mtime_ns))
    key = hashlib.sha256(os.fsencode(platform.node()) + b":" + root).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unnas"
    place, partial = cache / f"{key}-{stamp.hexdigest()[:16]}", cache / f"{key}-partial"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f"{key}.lock").acquire()
    except OSError as error:
        hint = "set XDG_CACHE_HOME to a folder where indexes can be kept"
        raise InputError(f"{cache}: {error.strerror}; {hint}") from None
    with lock:  # one process scans; the others wait, and find what it has made
        if not place.is_dir():
            for old in cache.glob(f"{key}-*"):  # also what a killed process left
                shutil.rmtree(old, ignore_errors=True)
            arrays = scan(root, folders)
            if not len(arrays[0]):
                where = f"{os.fsdecode(root)}: no images in its {len(folders)} folders"
                raise InputError(f"{where} ({', '.join(sorted(EXTENSIONS))})")
            partial.mkdir(exist_ok=True)
            for name, array in zip(INDEX, arrays):
                np.save(partial / name, array)
            partial.rename(place)
        # Mode "c" is copy on write: nobody writes, but torch wants arrays that could be written.
        names, starts, folder = (np.load(place / f"{n}.npy", "c").view(np.ndarray) for n in INDEX)
    return Names(names, starts), folder, [os.fsdecode(f) for f in folders]


# --------------------------------------------------------------------------------------------------
# Data sets


class DataSet:
    """In memory (data.ImageSet) or on disk (ImageFiles). `names` identify the images; labels (N,)
    are integers or None, masks (N, S, S) in memory, paths on disk, or None; `unreadable` has the
    files left out, {path: reason}, `formats` counts modes and sizes of the files.

    Both kinds have `size`, the side of the images or by default of their crops, and `resize(size)`;
    `fetch(parts, view, seed, device)`: images uint8 (B, h, w, 3), targets or None and indices for
    each index tensor of `parts`, without a seed for evaluation; `content()`: the bytes that stand
    for the images in a split's hash; `examine(index)`: decodes what is not yet, and returns lines.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the channels; ImageNet's
    padded_crops, jitter = False, 0.0  # whether tasks pad and crop; strength of their colour jitter
    mask_classes, notes = (), ()  # notes: lines on how the data set was read
    why_no_labels = "a folder of images has them as train/<class>/*"
    why_no_masks = "shapes and cityscapes have them"
    workers = 0  # processes that decode
    whole_masks = False  # masks are evaluated whole, and their sizes may differ
    per_image = ("names", "labels", "masks")  # the attributes with an entry for each image

    def __init__(self, names, labels=None, classes=(), masks=None):
        self.names, self.labels, self.masks, self.classes = names, labels, masks, list(classes)
        self.unreadable, self.formats = {}, Counter()

    def __len__(self):
        return len(self.names)

    def subset(self, index):
        """The images of an index tensor, in its order."""
        part = copy.copy(self)
        part.unreadable, part.formats = {}, Counter()
        for key in self.per_image:
            values = getattr(self, key)
            if isinstance(values, list):
                setattr(part, key, [values[i] for i in index.tolist()])
            elif values is not None:
                setattr(part, key, values[index])
        return part


class ImageFiles(DataSet):
    """On disk: the files `names` below the folder `root`, decoded when they are needed and cropped
    by `crop`. `unreadable` grows as files are found to be so."""

    size, whole_masks = 224, True
    empty = ()  # folders without images

    def __init__(self, root, names, crop, labels=None, classes=()):
        super().__init__(names, labels, classes)
        self.root, self.crop = root, crop

    def resize(self, size):
        self.size = size

    def content(self):
        return self.names.buffer, self.names.rows

    def files(self, index, view):
        """[(i, its path, its mask's path if the view has masks)] of an index tensor"""
        masks = self.masks if view.targets == "masks" else None
        paths = [os.path.join(self.root, self.names[i]) for i in index.tolist()]
        return [(i, path, masks and masks[i]) for i, path in zip(index.tolist(), paths)]

    def fetch(self, parts, view, seed, device):
        batches = DataLoader(
            Decoder(self.crop, self.mean, view, seed),
            batch_size=None,
            sampler=(self.files(index, view) for index in parts),
            num_workers=self.workers,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator(),  # leaves torch's own alone
            worker_init_fn=ignore_sigterm,
        )
        seen = failed = 0
        for batch in batches:
            if isinstance(batch, InputError):
                raise batch
            images, masks, index, unreadable = batch
            seen, failed = seen + len(index), failed + len(unreadable)
            for path, reason in unreadable.items():
                if path not in self.unreadable and len(self.unreadable) < 5:
                    print(f"left out, unreadable: {path} ({reason})", flush=True)
                self.unreadable[path] = reason
            if failed > max(10, MAX_UNREADABLE * seen):
                bad = f"{failed} of {seen} images below {self.root} are unreadable"
                raise InputError(f"{bad}, first {next(iter(self.unreadable))}")
            yield images, self.labels[index].long() if view.targets == "labels" else masks, index

    def examine(self, index):
        view = View(None if self.masks is None else "masks", "area", 64)
        decoder = Decoder(self.crop, self.mean, view, seed=None)
        files = self.files(index, view)
        formats, errors = try_all(lambda file: decoder.decode(file)[2], files)
        self.formats.update(formats.values())
        self.unreadable |= {path: reason for (_, path, _), reason in errors.items()}
        empty = [f"no images in folder {name}" for name in self.empty]
        return [*empty, f"decoded {self.formats.total() + len(self.unreadable)} of them"]


class Decoder:
    """The batches of ImageFiles for torch's DataLoader. Its workers get this and the names of each
    batch's files, and no more of the data set."""

    def __init__(self, crop, mean, view, seed):
        self.crop, self.view, self.fill = crop, view, tuple(round(255 * m) for m in mean)
        self.seed = None if seed is None else np.atleast_1d(seed)

    def decode(self, file):
        """Image (h, w, 3), mask (h, w) or None, cropped alike; mode and size of the file."""
        i, path, mask_path = file

        def crop(W, H):  # of image and mask: a new generator draws the same again
            rng = None if self.seed is None else np.random.default_rng([*self.seed, i])
            return self.crop(W, H, self.view, rng)

        image, size, found = read_rgb(path, crop, self.fill)
        return image, mask_path and read_mask(mask_path, size, crop), found

    def __getitem__(self, files):
        """images (B, h, w, 3), masks (B, h, w) or None, indices (B,), {path: why it is unreadable};
        images of the same batch stand in for those. An InputError is returned, as one raised in a
        worker arrives with its traceback."""
        try:
            decoded, errors = try_all(self.decode, files, threads=1)
        except InputError as error:
            return error
        unreadable = {path: reason for (_, path, _), reason in errors.items()}
        if unreadable and (self.seed is None or not decoded):
            path, reason = next(iter(unreadable.items()))
            why = f"and so is a whole batch of {len(files)} images"
            if self.seed is None:
                why = "without it the result would not be comparable"
            return InputError(f"{path}: unreadable ({reason}); {why}")
        chosen = (list(decoded) * len(files))[: len(files)]
        images, masks, _ = zip(*(decoded[file] for file in chosen))
        masks = np.stack(masks) if self.view.targets == "masks" else None
        return np.stack(images), masks, np.array([i for i, _, _ in chosen]), unreadable


def ignore_sigterm(worker):
    """It is for the process that trains, which ends its workers when it is done."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# --------------------------------------------------------------------------------------------------
# Reading each data set


def check_classes(root, classes, known):
    """InputError if the evaluation part below root has classes that the training part has not."""
    if new := sorted(set(classes) - set(known)):
        names = ", ".join(new[:5])
        raise InputError(f"{root}: classes that the training part does not have: {names}")


def read_classes(root, classes=None):
    """A folder of images for each class; of an evaluation part the training part's classes."""
    names, folder, folders = index_of(root)
    has_images = np.bincount(folder, minlength=len(folders)) > 0
    found = [name for name, has in zip(folders, has_images) if has]
    check_classes(root, found, classes or found)
    classes = classes or found
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number.get(name, -1) for name in folders], np.int32)[folder]
    dataset = ImageFiles(root, names, photo_crop, torch.from_numpy(labels), classes)
    dataset.empty = [name for name, has in zip(folders, has_images) if not has]
    dataset.jitter = 0.1
    return dataset


def read_imagenet(root, *_):
    if not (root / "train").is_dir() or not (root / "val").is_dir():
        layout = "train/ and val/, each with a folder of images for each class"
        raise InputError(f"--data {root}: no folders {layout}")
    train = read_classes(root / "train")
    return train, read_classes(root / "val", train.classes)


def read_cityscapes(root, *_):
    sets, problems = [], []
    for part in ("train", "val"):
        images, masks = root / "leftImg8bit" / part, root / "gtFine" / part
        names, *_ = index_of(images)
        photos = {f.removesuffix(PHOTO): i for i, f in enumerate(names) if f.endswith(PHOTO)}
        if not photos:
            raise InputError(f"{images}: no <city>/*{PHOTO}")
        try:
            found = list(index_of(masks)[0])
        except (InputError, OSError):  # there are none, as is said below
            found = []
        mask_of = {}
        for kind in (RAW_IDS, TRAIN_IDS):  # those of train ids go first
            mask_of |= {f.removesuffix(kind): str(masks / f) for f in found if f.endswith(kind)}
        dataset = ImageFiles(images, names[np.array([*photos.values()])], scene_crop)
        dataset.masks = [mask_of.get(stem) for stem in photos]
        dataset.mask_classes = list(CITYSCAPES.values())
        dataset.why_no_labels = "cityscapes has masks alone"
        sets.append(dataset)
        for what, stems in (
            ("images have no mask", photos.keys() - mask_of.keys()),
            ("masks have no image", mask_of.keys() - photos.keys()),
        ):
            if stems:
                problems.append(f"{masks}: {len(stems)} {what}, first {min(stems)}*")
    if problems:  # in either part: what is trained is evaluated
        for dataset in sets:
            dataset.masks, dataset.why_no_masks = None, "; ".join(problems)
    return sets
