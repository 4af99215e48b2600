"""Image files: how they are decoded and cropped, and the data sets that stay on disk."""

import atexit
import copy
import io
import math
import multiprocessing
import os
import signal
import tarfile
import threading
import time
import warnings
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from cli import InputError, progress
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import DataLoader, get_worker_info

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
COMPRESSED = ".7z", ".bz2", ".gz", ".rar", ".tbz2", ".tgz", ".txz", ".xz", ".zip", ".zst"
MAX_UNREADABLE = 0.25  # of the training images; above it something else is wrong
PATIENCE = 600  # seconds to wait for a batch
TRAINING = "train", "training"  # names of folders, the first that is there counts
EVALUATION = "val", "valid", "validation", "test", "testing"
WHITES = 1, 255, 1023, 4095, 16383, 65535  # of floats, and of 8 to 16 bits


class View(NamedTuple):
    """What a task wants to see of a data set."""

    targets: str | None  # "labels", "masks" or nothing
    crop: str  # of images on disk: "area", a random part of any scale, or "window", of a fixed one
    size: int  # side of the crops in pixels
    base: float = 1.0  # of street scenes, the share of their own size around which crops are scaled


# -------------------------------------------------------------------------- Crops of images on disk
# From an image's width and height, and a random generator or None, to the box (left, top, right,
# bottom) to take and the (w, h) to scale it to. Without a generator, for evaluation: in the middle.


def window(W, H, w, h, size, rng):
    """A square of that size in the image scaled to (w, h), which is at least as large."""
    rooms = w - size, h - size
    x, y = (room // 2 if rng is None else rng.integers(room + 1) for room in rooms)
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
    tiles a window of 255 of the image scaled to 256, at other sizes likewise."""
    if view.crop == "area" and rng is not None:
        return random_area(W, H, view.size, rng)
    scale = (view.size + 1 if view.crop == "window" else round(view.size * 8 / 7)) / min(W, H)
    return window(W, H, round(W * scale), round(H * scale), view.size, rng)


def scene_crop(W, H, view, rng):
    """Cityscapes: a window of the image, whose shorter side is scaled to base * 2^u, u uniform in
    -1 .. 1, and never below the crop, so that nothing is padded. base is 1024 for the evaluation
    phase and 512 for searches and pretext tasks: here the image's own shorter side, and half of it.
    Evaluation: with masks the whole image, without them the middle at base."""
    if rng is None and view.targets == "masks":
        return (0, 0, W, H), (W, H)
    base, factor = view.base * min(W, H), 1 if rng is None else 2 ** rng.uniform(-1, 1)
    scale = max(view.size, base * factor) / min(W, H)
    return window(W, H, round(W * scale), round(H * scale), view.size, rng)


def square_crop(W, H, view, rng):
    return middle(W, H, min(W, H), min(W, H), view.size)


CROPS = {"imagenet": photo_crop, "imagenet22k": photo_crop, "cityscapes": scene_crop}


# ----------------------------------------------------------------------------------------- Decoding


def resized(image, box, size, resample):
    """That box of an image at that size as an array."""
    left, top, right, bottom = box  # which rounding may have moved over the edges
    box = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
    return np.asarray(image.resize(size, resample, box, reducing_gap=3.0))


def read_rgb(path, crop, whites):
    """Of any image file, upright and RGB: what crop(width, height) takes as uint8 (h, w, 3); its
    (width, height); mode and size as text. On a broken file it raises whatever Pillow does.
    `whites` is what `survey` found."""
    with open_image(path) as image:
        found, full_width = f"{image.mode} {image.width} x {image.height}", image.width
        if image.format not in ("JPEG", "MPO"):
            image.load()  # turns a TIFF upright, so before its orientation is looked at
        order = 1
        with suppress(Exception):  # Pillow fails in many ways on a broken tag; the image is fine
            order = -1 if image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8) else 1
        W, H = image.size[::order]
        box, size = crop(W, H)
        # A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is enough.
        w, h = W * size[0] / (box[2] - box[0]), H * size[1] / (box[3] - box[1])
        drafted = image.draft("RGB", (math.ceil(w), math.ceil(h))[::order])
        scale = drafted[1][2] / full_width if drafted else 1
        image.load()
        with suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        box = [scale * edge for edge in box]
        return resized(to_rgb(image, whites), box, size, Image.Resampling.BILINEAR), (W, H), found


def to_rgb(image, whites):
    if image.mode[0] in whites:  # `convert` would clip at 255
        pixels = wide_pixels(image) * (255 / whites[image.mode[0]])
        image = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
    elif image.mode[0] in "IF":
        raise ValueError(f"of mode {image.mode}, unlike all images that the scale was taken from")
    return image if image.mode == "RGB" else image.convert("RGB")


def wide_pixels(image):
    """The values of an image of 16 or 32 bits."""
    pixels = np.asarray(image, np.float32)
    if not np.isfinite(pixels).all():
        raise ValueError("some values are not finite numbers")
    return pixels


def survey(files):
    """Of at most 1,000 of these ImageFiles: the sorted shorter sides; where there are images
    of 16 or 32 bits, the value that is white in those of integers ("I") and of floats ("F"), one
    for a whole data set: the smallest of WHITES that none of them exceeds; and a note on it."""

    def look(i):
        with open_image(files.path(i)) as image:
            kind = image.mode[0]
            return min(image.size), kind, wide_pixels(image).max() if kind in "IF" else 0

    sample = range(0, len(files), 1 + (len(files) - 1) // 1000)
    looks, whites = list(try_all(look, sample, "images looked at")[0].values()), {}
    for kind, choices in (("I", WHITES[1:]), ("F", WHITES)):
        if values := [float(top) for _, found, top in looks if found == kind]:
            whites[kind] = next((white for white in choices if white >= max(values)), max(values))
    why = f"the largest value in {len(looks)} images"
    notes = [f"mode {kind}: {white:g} is white, by {why}" for kind, white in whites.items()]
    return sorted(side for side, _, _ in looks) or [0], whites, notes


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
    """What `crop` takes of a Cityscapes mask as uint8 (h, w): 0 to 18, 255 where none counts."""
    try:
        with open_image(path) as image:
            image.load()
    except Exception as error:  # Pillow raises many types on a damaged file
        raise OSError(f"its mask {path}: {error}") from None
    if image.size != image_size or image.mode not in ("L", "P"):
        found = f"{path}: a mask of mode {image.mode}, {image.width} x {image.height}"
        raise InputError(f"{found}; it must have 8 bits and be {image_size[0]} x {image_size[1]}")
    mask = resized(image, *crop(*image_size), Image.Resampling.NEAREST)
    if path.endswith(RAW_IDS):
        return TRAIN_ID[mask]
    if ((mask >= 19) & (mask != 255)).any():
        raise InputError(f"{path}: a mask of train ids has 0 to 18 and 255, this one others too")
    return mask


def try_all(read, items, what=None, threads=None):
    """({item: read(item)}, {item: why it failed}), several at a time; `what`: as in `progress`."""
    results, errors = {}, {}
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # of Pillow, about broken tags and large images
        futures = [(item, pool.submit(read, item)) for item in items]
        for item, future in progress(futures, what):
            error = future.exception()
            if isinstance(error, InputError):  # ours; Pillow raises many types on a damaged file
                raise error
            elif error:
                errors[item] = str(error) or type(error).__name__
            else:
                results[item] = future.result()
    return results, errors


# -------------------------------------------------------------------------------- The list of files


class Member(namedtuple("Member", "tar name offset size")):
    """An image in a tar archive, which is read in place."""

    def __str__(self):
        return f"{self.tar}: {self.name}"


def open_image(path):
    if isinstance(path, Member):
        with open(path.tar, "rb") as file:
            file.seek(path.offset)
            return Image.open(io.BytesIO(file.read(path.size)))
    if not os.path.isfile(path):  # a pipe would block
        raise OSError("not a regular file")
    return Image.open(path)


def list_images(root):
    """({path: place} of the images below root, tar archives, a Counter of what else there is).
    Paths are bytes, as they need not be text. An archive is a folder of its name without .tar; a
    place in it is its number in the list, offset and size. Each folder is visited once, however
    many links lead to it."""
    found, tars, others, visited = {}, [], Counter(), set()
    root, endings = os.fsencode(root), tuple(map(os.fsencode, EXTENSIONS))

    def add(path, place=(-1, 0, 0), open_inner=None):  # the path starts with a slash
        if b"/." in path:
            others["hidden"] += 1
        elif path.lower().endswith(endings):
            others["duplicate names"] += path[1:] in found
            found[path[1:]] = place
        elif path.endswith(b".tar") and (open_inner or os.path.isfile(root + path)):
            if not open_inner:  # else it is an archive in an archive
                tars.append(os.fsdecode(root + path))
            with open_inner() if open_inner else open(tars[-1], "rb") as file:
                add_members(path[:-4] + b"/", file, place[1])
        else:
            ending = os.fsdecode(os.path.splitext(path)[1]).lower()
            what = " (unpack it, or decompress it to .tar)" if ending in COMPRESSED else ""
            others[f"{ending or 'without an ending'}{what}"] += 1

    def add_members(top, file, start):
        own = top.split(b"/")[-2]  # `tar -cf train.tar train/` puts it before all names
        with tarfile.open(fileobj=file, mode="r:") as tar:
            wrapped = None  # whether it is, as the first name that is not hidden tells
            for member in progress(iter(tar.next, None), f"{tars[-1]}: files listed"):
                tar.members.clear()  # it would keep them all
                parts = os.fsencode(member.name).split(b"/")
                parts = [part for part in parts if part not in (b"", b".")]
                if wrapped is None and parts and not parts[0].startswith(b"."):
                    wrapped = parts[0] == own
                if wrapped and parts[:1] == [own]:
                    del parts[0]
                if member.isreg() and not member.issparse():
                    place = len(tars) - 1, start + member.offset_data, member.size
                    add(top + b"/".join(parts), place, partial(tar.extractfile, member))
                else:
                    others["links and the like in archives"] += not member.isdir()
            file.seek(tar.offset)
            rest = file.read(100 * tarfile.BLOCKSIZE)
            if not rest or any(rest):
                raise tarfile.ReadError("it has no end, or goes on after it")

    def skip(error):
        others[f"folder that cannot be read, {os.fsdecode(error.filename)}: {error.strerror}"] += 1

    walk = os.walk(root, onerror=skip, followlinks=True)
    for folder, inner, names in progress(walk, f"{os.fsdecode(root)}: folders listed"):
        shown = sorted(name for name in inner if not name.startswith(b"."))
        hidden, inner[:] = len(inner) - len(shown), shown
        if (inode := os.stat(folder)[1:3]) in visited:  # and its device
            others["links to folders seen before"] += 1
            inner.clear()
            continue
        visited.add(inode)
        others["hidden folders"] += hidden
        others["empty folders"] += not inner and not names
        top = folder[len(root) :].replace(os.fsencode(os.sep), b"/") + b"/"
        for name in progress(sorted(names), f"{os.fsdecode(folder)}: files listed"):
            try:
                add(top + name)
            except (OSError, tarfile.TarError, ValueError, RecursionError, OverflowError) as error:
                raise InputError(f"{tars[-1]}: not a whole .tar, or compressed ({error})") from None
    return found, tars, others


def listed(counts):
    """A Counter as text, the most frequent first."""
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {what}" for what, n in by_count if n) or "nothing"


# ---------------------------------------------------------------------------------------- Data sets


class DataSet:
    """In memory (data.ImageSet) or on disk (ImageFiles). `names`, an array of bytes, identify the
    images; labels (N,) are integers, masks (N, S, S) in memory or an array of paths; `size` is the
    side of the images or the default one of their crops; `unreadable`, {path: reason}, are files
    left out, `formats` counts modes and sizes of the others. fetch(parts, view, seed, device)
    yields images uint8 (B, h, w, 3), targets or None, and indices for each tensor of `parts`."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the channels; ImageNet's
    padded_crops, jitter = False, 0.0  # whether tasks pad and crop; strength of their colour jitter
    mask_classes, notes = (), ()  # notes: lines on how the data set was read
    why_no_labels = "a folder of images has them as train/<class>/*"
    why_no_masks = "shapes and cityscapes have them"
    workers = 0  # processes that decode
    whole_masks = False  # masks are evaluated whole, and their sizes may differ
    labelled = 1.0  # share of the pixels of the masks that count
    whites = {}  # of images of more than 8 bits: see `survey`

    def __init__(self, names, labels=None, classes=(), masks=None):
        self.names, self.labels, self.masks, self.classes = names, labels, masks, list(classes)
        self.unreadable, self.formats = {}, Counter()

    def __len__(self):
        return len(self.names)

    def examine(self, index):
        """Decodes the images of an index tensor, for `formats` and `unreadable`, if need be."""

    def subset(self, index):
        """The images of an index tensor, in its order."""
        part = copy.copy(self)
        part.unreadable, part.formats = {}, Counter()
        for key in ("names", "places", "labels", "masks", "images"):
            if (values := getattr(self, key, None)) is not None:
                setattr(part, key, values[index.numpy()])
        return part


class ImageFiles(DataSet):
    """On disk: the files `names` below the folder `root`, decoded when they are needed and cropped
    by `crop`. `unreadable` grows as files are found to be so."""

    size, whole_masks = 224, True
    tars, places = (), None  # see `list_images`

    def __init__(self, root, names, crop, labels=None, classes=()):
        super().__init__(names, labels, classes)
        self.root, self.crop = root, crop

    def resize(self, size):
        self.size = size

    def files(self, index, view):
        """[(i, its path, its mask's path if the view has masks)] of an index tensor"""
        masks = self.masks if view.targets == "masks" else None
        return [(i, self.path(i), None if masks is None else masks[i]) for i in index.tolist()]

    def path(self, i):
        """A path or, of what is in a tar archive, a Member."""
        name = os.fsdecode(self.names[i])
        tar, *place = self.places[i].tolist() if self.tars else [-1]
        return Member(self.tars[tar], name, *place) if tar >= 0 else os.path.join(self.root, name)

    def fetch(self, parts, view, seed, device):
        loader = DataLoader(
            Decoder(self.crop, view, seed, self.whites),
            batch_size=None,
            sampler=(self.files(index, view) for index in parts),
            num_workers=min(self.workers, len(parts)),
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator(),  # leaves torch's own alone
            worker_init_fn=ignore_sigterm,
        )
        seen = failed = 0
        for batch in patient(loader):
            if isinstance(batch, InputError):
                raise batch
            (images, index, *masks), unreadable = batch
            seen, failed = seen + len(index), failed + len(unreadable)
            for path, reason in unreadable.items():
                if path not in self.unreadable and len(self.unreadable) < 5:
                    print(f"left out, unreadable: {path} ({reason})", flush=True)
                self.unreadable[path] = reason
            if failed > max(10, MAX_UNREADABLE * seen):
                bad = f"{failed} of {seen} images below {self.root} are unreadable"
                raise InputError(f"{bad}, first {next(iter(self.unreadable))}")
            labels = self.labels[index] if view.targets == "labels" else None
            yield images, masks[0] if masks else labels, index

    def examine(self, index):
        view = View(None if self.masks is None else "masks", "area", 64)
        decoder = Decoder(self.crop, view, None, self.whites)

        def look(file):
            _, mask, found = decoder.decode(file)
            return found, mask is not None and (mask != 255).mean()

        looks, errors = try_all(look, self.files(index, view), "images looked at")
        self.formats.update(found for found, _ in looks.values())
        self.labelled = sum(share for _, share in looks.values()) / max(1, len(looks))
        self.unreadable |= {path: reason for (_, path, _), reason in errors.items()}


class Decoder:
    """The batches of ImageFiles for torch's DataLoader. Its workers get this and the names of each
    batch's files, and no more of the data set."""

    def __init__(self, crop, view, seed, whites):
        self.crop, self.view, self.whites = crop, view, whites
        self.seed = None if seed is None else np.atleast_1d(seed)

    def decode(self, file):
        """Image (h, w, 3), mask (h, w) or None, cropped alike; mode and size of the file."""
        i, path, mask_path = file

        def crop(W, H):  # of image and mask: a new generator draws the same again
            rng = None if self.seed is None else np.random.default_rng([*self.seed, i])
            return self.crop(W, H, self.view, rng)

        image, size, found = read_rgb(path, crop, self.whites)
        return image, mask_path and read_mask(mask_path, size, crop), found

    def __getitem__(self, files):
        """[images (B, h, w, 3), indices (B,), perhaps masks (B, h, w)], {path: why unreadable}.
        An InputError is returned, as one raised in a worker arrives with its traceback."""
        try:
            decoded, errors = try_all(self.decode, files, threads=1)
        except InputError as error:
            return error
        unreadable = {path: reason for (_, path, _), reason in errors.items()}
        if unreadable and (self.seed is None or not decoded):
            path, reason = next(iter(unreadable.items()))
            bad = f"{len(unreadable)} of {len(files)} images of its batch are; mend or replace them"
            return InputError(f"{path}: unreadable ({reason}); {bad}")
        chosen = (list(decoded) * len(files))[: len(files)]  # others stand in for those
        images, masks, _ = zip(*(decoded[file] for file in chosen))
        batch = [torch.from_numpy(np.stack(images)), torch.tensor([i for i, _, _ in chosen])]
        if self.view.targets == "masks":
            batch.append(torch.from_numpy(np.stack(masks)))
        try:  # here, as what fails when a worker sends it is lost, and the run would wait for ever
            for tensor in batch if get_worker_info() else []:
                tensor.share_memory_()
        except RuntimeError as error:
            size = f"a batch of {sum(tensor.nbytes for tensor in batch) / 2**20:.1f} MB"
            why = f"no room for {size} in /dev/shm ({str(error).splitlines()[0]})"
            return InputError(f"{why}: fewer --workers, or docker run --shm-size=8g")
        return batch, unreadable


def patient(loader):
    """The batches of a DataLoader. Workers that give none for PATIENCE seconds are killed: its own
    timeout does not count while it receives a batch. That one has died is noticed here alone:
    torch's handler of SIGCHLD would raise an error wherever the process is, in other errors too."""
    batches = iter(loader)
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        started, timer = time.time(), threading.Timer(PATIENCE, kill_workers)
        timer.daemon = True
        timer.start()
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (RuntimeError, EOFError, ConnectionError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            why = "one was killed: too little memory?"
            if time.time() - started > PATIENCE:
                why = f"no batch for {PATIENCE} s: does the disk hang?"
            raise InputError(f"--workers: {why}") from None
        finally:
            timer.cancel()
        yield batch


def ignore_sigterm(worker):  # it is for the process that trains, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def kill_workers():
    """At the end of a process, whatever ends it: multiprocessing would send workers a SIGTERM and
    wait for them for ever."""
    for worker in multiprocessing.active_children():
        worker.kill()


atexit.register(kill_workers)  # after multiprocessing's own, so that it comes first


def read_trees(root, both=False):
    """The training part of a tree of images, with the folders in it as classes, and the evaluation
    part or None. Without a folder for it all but evaluation is trained on, unless `both`."""
    files, tars, left_out = list_images(root)
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() or path.suffix == ".tar"]
    tops = {name.lower(): name for name in (path.name.removesuffix(".tar") for path in folders)}

    def below(top):
        top = os.fsencode(os.path.join(top, ""))
        return {path[len(top) :]: files.pop(path) for path in [*files] if path.startswith(top)}

    roots = [tops[name] for name in EVALUATION if name in tops]  # the first one counts
    roots.append(([tops[name] for name in TRAINING if name in tops] + [""])[0])
    if both and (len(roots) < 2 or not roots[-1]):
        raise InputError(f"--data {root}: no folders train/ and val/ with a folder for each class")
    parts = [below(top) for top in roots]
    left_out["outside the folders that are used"] = len(files) + sum(map(len, parts[1:-1]))
    train, test = read_tree(root / roots[-1], parts[-1], tars, left_out), None
    if len(parts) > 1:
        test = read_tree(root / roots[0], parts[0], tars, left_out, train)
        if test.labels is None:  # what is trained is evaluated
            train.labels, train.why_no_labels = None, test.why_no_labels
    train.notes.insert(0, f"left out: {listed(left_out)}")
    return train, test


def read_tree(root, files, tars, left_out, training=None):
    """The images of `list_images` below root, with its folders as classes. `training`: the training
    part, for an evaluation part."""
    if not files:
        raise InputError(f"{root}: no images ({', '.join(EXTENSIONS)}), but {listed(left_out)}")
    names = sorted(files)
    tops = [os.fsdecode(name[: max(0, name.find(b"/"))]) for name in names]
    classes = training.classes if training else sorted({*tops})
    numbers = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([numbers.get(top, -1) for top in tops])
    dataset = ImageFiles(root, np.array(names), photo_crop, labels, classes)
    dataset.jitter, dataset.tars = 0.1, tars
    if tars:
        dataset.places = np.array([files[name] for name in names])
    if training:
        dataset.whites = training.whites
    else:
        dataset.sides, dataset.whites, dataset.notes = survey(dataset)
    why = None  # it cannot be labelled
    if "" in tops:
        why = f"{root / os.fsdecode(names[tops.index('')])} is not in the folder of a class"
    elif new := sorted({*tops} - {*classes}):
        why = f"{root}: classes the training part does not have: {', '.join(new[:5])}"
    elif len(classes) == 1:  # often a level is too many
        inner = sorted({name.split(b"/")[1] for name in names if name.count(b"/") > 1})[:5]
        more = f", with the folders {os.fsdecode(b', '.join(inner))}" if inner else ""
        why = f"{root} has only one class, {classes[0]}{more}"
    if why:
        dataset.labels, dataset.why_no_labels = None, why
    return dataset


def scenes(root, ending):
    """{<city>/<scene>: path} of the files below root with that ending"""
    paths = sorted(root.glob(f"[!.]*/[!.]*{ending}"))
    return {f.relative_to(root).as_posix().removesuffix(ending): str(f) for f in paths}


def read_cityscapes(root, *_):
    sets, problems = [], []
    for part in ("train", "val"):
        images, masks = root / "leftImg8bit" / part, root / "gtFine" / part
        if not (photos := scenes(images, PHOTO)):
            raise InputError(f"{images}: no <city>/*{PHOTO}")
        mask_of = scenes(masks, RAW_IDS) | scenes(masks, TRAIN_IDS)  # those of train ids go first
        dataset = ImageFiles(images, np.array([os.fsencode(f + PHOTO) for f in photos]), scene_crop)
        dataset.masks = np.array([mask_of.get(scene, "") for scene in photos])
        dataset.mask_classes, dataset.jitter = list(CITYSCAPES.values()), 0.1
        dataset.why_no_labels = "cityscapes has masks alone"
        sets.append(dataset)
        if alone := photos.keys() - mask_of.keys():
            problems.append(f"{masks}: {len(alone)} images have no mask, first {min(alone)}*")
        if alone := mask_of.keys() - photos.keys():
            problems.append(f"{masks}: {len(alone)} masks have no image, first {min(alone)}*")
    _, whites, sets[0].notes = survey(sets[0])
    for dataset in sets:
        dataset.whites = whites
    if problems:  # in either part: what is trained is evaluated
        for dataset in sets:
            dataset.masks, dataset.why_no_masks = None, "; ".join(problems)
    return sets
