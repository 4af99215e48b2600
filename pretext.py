"""The tasks: classification (cls), segmentation (seg) and, without labels, rotation (rot),
colorization (col) and jigsaw puzzles (jig). Where the paper is silent we follow the official code,
but evaluation draws nothing at random, so that it repeats exactly.

A task owns all that depends on it: the network's input, classes, head, loss and metric. `prepare`
turns a batch of uint8 images into network inputs and targets, on the batch's device and for the
whole batch at once. Its tensors lie in memory as (B, C, H, W): loops over three channels innermost
are slow on a CPU. In training it augments, after what workers did to images on disk:

              in memory (CIFAR-10)       ImageNet                    Cityscapes
              device                     worker | device             worker | device
    cls, rot  padded crop, flip          random area | flip, jitter  scaled window | flip, jitter
    col       flip                       random area | flip          scaled window | flip
    jig       tile offsets, flip, grey   window | the same, jitter   scaled window | same, jitter
    seg       flip                                                   scaled window | flip, jitter
"""

import itertools
from functools import lru_cache

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from cli import InputError, printable

from image_files import View
from ops import ASPPHead, PixelHead, PooledHead, total_stride

# ----------------------------------------------------------------------- Augmentation, (B, C, H, W)


def take(x, rows, cols):
    """x (B, C, H, W) at rows (B, ..., h) and columns (B, ..., w) -> (B, C, ..., h, w)"""
    pixels = (rows * x.shape[3]).unsqueeze(-1) + cols.unsqueeze(-2)  # (B, ..., h, w)
    chosen = x.flatten(2).gather(2, pixels.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1))
    return chosen.unflatten(2, pixels.shape[1:])


def random_flip(x, *masks):
    """Mirrors each image with probability 1/2, and its mask (B, H, W) with it."""
    flip = torch.rand(len(x), 1, 1, device=x.device) < 0.5
    x = torch.where(flip.unsqueeze(3), x.flip(3), x)
    return (x, *(torch.where(flip, y.flip(2), y) for y in masks)) if masks else x


def random_crop_flip(x, padding):
    """Pads with zeros, takes a random window of the old size, mirrors it with probability 1/2."""
    B, _, H, W = x.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, B, 1), device=x.device)
    rows = offsets[0] + torch.arange(H, device=x.device)  # (B, H)
    cols = offsets[1] + torch.arange(W, device=x.device)  # (B, W)
    cols = torch.where(torch.rand(B, 1, device=x.device) < 0.5, cols.flip(1), cols)
    return take(F.pad(x, (padding,) * 4), rows, cols)


# The principal components of ImageNet's colours (the columns; RGB in 0 .. 1) and their standard
# deviations; Krizhevsky et al. 2012
COLOR_AXES = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
COLOR_STD = [0.2175, 0.0188, 0.0045]


def color_jitter(x, strength):
    """Moves the colour of each image along the principal components; x is in 0 .. 1."""
    axes, std = (torch.tensor(table, device=x.device) for table in (COLOR_AXES, COLOR_STD))
    amounts = strength * torch.randn(len(x), 3, device=x.device) * std
    return x + (amounts @ axes.T)[:, :, None, None]


def cutout(x, length):
    """Zeroes a square around a random pixel of each of x (B, C, H, W). DeVries & Taylor 2017."""
    B, _, H, W = x.shape

    def inside(size):
        start = torch.randint(0, size, (B, 1), device=x.device) - length // 2
        position = torch.arange(size, device=x.device)
        return (position >= start) & (position < start + length)  # (B, size)

    return x.masked_fill((inside(H)[:, :, None] & inside(W)[:, None, :])[:, None], 0)


# -------------------------------------------------------------------------------------------- Tasks


class Task:
    """What the tasks have in common: cross-entropy and the share of correct predictions."""

    num_classes: int
    classes = None  # their names (default: numbers)
    in_channels, inputs_per_target, targets_per_image = 3, 1, 1  # of the network
    classifies_inputs = True  # one target for each input, as an auxiliary classifier needs it
    reductions = 2  # cells of the network that halve the resolution
    targets, crop = None, "area"  # what it reads of a data set, as in image_files.View
    metric, higher_is_better = "top1", True  # what counts of `metrics`: percent of correct targets
    ignored = -1  # a target that does not count

    def __init__(self, dataset, size, stem, search, device):
        self.size = self.input_size = size
        base = 1.0 if self.targets == "masks" and not search else 0.5  # 1024 and 512 on Cityscapes
        self.view = View(self.targets, self.crop, size, base)
        self.padded_crops, self.jitter = dataset.padded_crops, dataset.jitter
        self.mean = torch.tensor(dataset.mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(dataset.std, device=device).view(3, 1, 1)

    @property
    def input_shape(self):
        # (tiles, C, h, w) of a target
        return self.inputs_per_target, self.in_channels, self.input_size, self.input_size

    @property
    def network_args(self):
        """What networks take of a task."""
        return {"head": self.head, "in_channels": self.in_channels, "reductions": self.reductions}

    def normalize(self, images, train):
        """uint8 (B, 3, H, W) -> float, without the data set's mean and standard deviation."""
        x = images.contiguous().to(torch.get_default_dtype()).div_(255)
        if train and self.jitter:
            x = color_jitter(x, self.jitter)
        return x.sub_(self.mean).div_(self.std)

    def augment(self, images, train):
        """Normalises; in training flips, and crops small images padded by 1/8 (4 pixels at 32)."""
        if train and self.padded_crops:  # zeros are the mean colour: pad after normalising
            return random_crop_flip(self.normalize(images, train), self.size // 8)
        return self.normalize(random_flip(images.contiguous()) if train else images, train)

    def prepare(self, images, labels, index, train):
        """images uint8 (B, 3, H, W), labels (B,) or masks (B, H, W) or None, index (B,) in the data
        set -> inputs (B', C, h, w), targets. Random only if `train`."""
        raise NotImplementedError

    def head(self, C) -> nn.Module:
        return PooledHead(C, self.num_classes, self.inputs_per_target)

    def loss(self, logits, targets, label_smoothing=0.0, **options):
        # Flat, as the cross-entropy of (B, classes, H, W) is not deterministic on a GPU
        logits, targets = logits.movedim(1, -1).flatten(0, -2), targets.flatten()  # (B*H*W, ..)
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing, **options)

    def score(self, logits, targets):
        """Sums over a batch that `metrics` is made of; the last is the number of targets."""
        correct = (logits.argmax(1) == targets).sum()
        return torch.stack([correct, torch.full_like(correct, targets.numel())])

    def metrics(self, scores) -> dict:
        correct, count = scores.tolist()
        return {"top1": 100 * correct / count}

    def show(self, x, y) -> list:
        """Of one image its inputs x (b, C, h, w) as pictures (h, w, 3) in 0 .. 1, and y, targets or
        predictions, if these are classes of pixels (1, h, w)."""
        pictures = (x * self.std + self.mean).clamp(0, 1).permute(0, 2, 3, 1)  # (b, h, w, 3)
        return [*pictures, *(y if y.dim() > 1 else [])]

    def undo(self, x, y):
        """What predictions y make of the inputs x of one image: `show` shows whether they hold."""
        return x


class Classification(Task):
    targets = "labels"

    def __init__(self, dataset, *setting):
        super().__init__(dataset, *setting)
        self.classes = [*map(printable, dataset.classes)]
        self.num_classes = len(self.classes)

    def prepare(self, images, labels, index, train):
        return self.augment(images, train), labels  # (B, 3, H, W), (B,)


class Rotation(Task):
    """Which of four rotations an image has; each image is in all four. Gidaris et al. 2018."""

    num_classes, classes, targets_per_image = 4, ["0°", "90°", "180°", "270°"], 4

    def prepare(self, images, labels, index, train):
        x = self.augment(images, train)
        t = x.transpose(2, 3).contiguous()  # one copy for two, faster than torch.rot90 twice
        x = torch.stack([x, t.flip(2), x.flip(2, 3), t.flip(3)], 1)  # counter-clockwise
        targets = torch.arange(4, device=x.device).repeat(len(x))
        return x.flatten(0, 1), targets  # (B*4, 3, H, W), (B*4,)

    def undo(self, x, y):
        return torch.stack([view.rot90(-k, (1, 2)) for view, k in zip(x, y.tolist())])


class Colorization(Task):
    """Which of 313 colours each pixel has, by its lightness. Zhang et al. 2016, not re-balanced."""

    in_channels, num_classes, classifies_inputs = 1, 313, False

    def __init__(self, dataset, size, stem, search, device):
        super().__init__(dataset, size, stem, search, device)
        lightness, bins = color_tables()
        # The official code normalises L / 100 by the mean over the channels of the RGB statistics.
        lightness = (lightness / 100 - self.mean.mean().cpu()) / self.std.mean().cpu()
        self.lightness, self.bins = lightness.to(device), bins.to(device)
        self.grey = BINS.index((0, 0))

    def prepare(self, images, labels, index, train):
        images = images.contiguous()
        red, green, blue = (random_flip(images) if train else images).int().unbind(1)  # (B, H, W)
        color = ((red << 16) | (green << 8) | blue).flatten()  # (B*H*W,)
        # On a CPU index_select is several times faster than indexing.
        lightness = self.lightness.index_select(0, color).view_as(red)
        bins = self.bins.index_select(0, color).long().view_as(red)
        return lightness.unsqueeze(1), bins  # (B, 1, H, W), (B, H, W)

    def score(self, logits, targets):
        hits, count = super().score(logits, targets)
        return torch.stack([hits, (targets == self.grey).sum(), count])

    def metrics(self, scores):
        """With the share of grey pixels, which a network that has learned nothing gets right."""
        hits, grey, count = scores.tolist()
        return {"top1": 100 * hits / count, "grey": 100 * grey / count}

    def show(self, x, y):
        lightness = (x[0] * self.std.mean() + self.mean.mean()).cpu().permute(1, 2, 0)  # (H, W, 1)
        lab = torch.cat([100 * lightness, torch.tensor(BINS)[y[0].cpu()]], 2)  # (H, W, 3)
        return [lightness.expand_as(lab), lab_to_rgb(lab)]

    def head(self, C):
        return PixelHead(C, self.num_classes)


class Jigsaw(Task):
    """Which permutation a grid of tiles was shuffled by, 2x2 with the CIFAR stem and 3x3 otherwise:
    tile k stands in slot perm[k]. Noroozi & Favaro 2016."""

    classifies_inputs, crop = False, "window"
    gray_probability = 0.3
    min_std = 1e-3  # a tile of one colour stays finite

    def __init__(self, dataset, size, stem, search, device):
        super().__init__(dataset, size, stem, search, device)
        self.grid = 2 if stem == "cifar" else 3
        self.inputs_per_target = self.grid**2
        self.patch = size // self.grid
        self.input_size = int(0.76 * self.patch)  # a gap, so that edges do not give it away
        perms = torch.from_numpy(permutations(self.grid)).to(device)  # (P, T)
        self.num_classes = len(perms)
        self.classes = [" ".join(map(str, perm)) for perm in permutations(self.grid).tolist()]
        self.tile_in_slot = perms.argsort(1)

    def prepare(self, images, labels, index, train):
        B, device, gap = len(images), images.device, self.patch - self.input_size
        targets = index % self.num_classes
        offsets = torch.full((2, B, self.inputs_per_target, 1), gap // 2, device=device)
        if train:
            targets = torch.randint(0, self.num_classes, (B,), device=device)
            offsets = torch.randint(0, gap + 1, (2, B, self.inputs_per_target, 1), device=device)
        tile = self.tile_in_slot[targets].unsqueeze(-1)  # (B, T, 1)
        position = torch.arange(self.input_size, device=device)
        rows = tile // self.grid * self.patch + offsets[0] + position  # (B, T, t)
        cols = tile % self.grid * self.patch + offsets[1] + position
        if train:  # mirrored
            cols = torch.where(torch.rand(B, 1, 1, device=device) < 0.5, self.size - 1 - cols, cols)
        x = take(images.contiguous(), rows, cols)  # (B, 3, T, t, t)
        x = self.normalize(x.flatten(2, 3), train)  # (B, 3, T*t, t)
        if train:
            gray = torch.rand(B, 1, 1, 1, device=device) < self.gray_probability
            x = torch.where(gray, self.to_gray(x), x)
        x = x.unflatten(2, (-1, self.input_size)).transpose(1, 2).contiguous()  # (B, T, 3, t, t)
        # One mean and deviation a tile, over all pixels and channels, as in the official code
        x -= x.mean((2, 3, 4), keepdim=True)
        x /= x.square().mean((2, 3, 4), keepdim=True).sqrt().clamp(min=self.min_std)
        return x.flatten(0, 1), targets  # (B*T, 3, t, t), (B,)

    def show(self, x, y):
        tiles = F.pad(torch.stack(super().show(x, y)), (0, 0, 1, 1, 1, 1), value=1.0)
        rows = tiles.unflatten(0, (self.grid, -1)).transpose(1, 2)  # (grid, t+2, grid, t+2, 3)
        return [rows.flatten(2, 3).flatten(0, 1)]

    def undo(self, x, y):
        return x[self.tile_in_slot[y[0]].argsort()]

    def to_gray(self, x):
        luma = torch.tensor([0.2125, 0.7154, 0.0721], device=x.device).view(3, 1, 1)  # BT.709
        gray = ((x * self.std + self.mean) * luma).sum(1, keepdim=True)  # (B, 1, H, W)
        return (gray - self.mean) / self.std


class Segmentation(Task):
    """Which class each pixel belongs to; masks are 255 where a pixel does not count."""

    targets, metric, ignored = "masks", "miou", 255
    classifies_inputs, reductions = False, 1

    def __init__(self, dataset, size, stem, search, device):
        super().__init__(dataset, size, stem, search, device)
        self.classes, self.num_classes = dataset.mask_classes, len(dataset.mask_classes)
        self.channels, self.rates = (64, [6]) if search else (256, [6, 12, 18])

    def prepare(self, images, masks, index, train):
        x, y = self.normalize(images, train), masks.long()
        if train:
            x, y = random_flip(x, y)
        else:  # to 1025 x 2049, as the paper: positions at stride 8 start and end at the edges
            x, y = F.pad(x, (0, 1, 0, 1)), F.pad(y, (0, 1, 0, 1), value=self.ignored)
        return x, y  # (B, 3, H, W), (B, H, W)

    def head(self, C):
        return ASPPHead(C, self.num_classes, self.channels, self.rates)

    def loss(self, logits, targets, label_smoothing=0.0):
        counted = dict(ignore_index=self.ignored, reduction="sum")
        total = super().loss(logits, targets, label_smoothing, **counted)
        pixels = (targets != self.ignored).sum()
        return total / pixels.clamp(min=1)  # 0 where no pixel counts, not NaN

    def score(self, logits, targets):
        """The confusion matrix (true, predicted), flat, and the number of pixels that count."""
        n, valid = self.num_classes, targets != self.ignored
        pairs = torch.where(valid, targets * n + logits.argmax(1), n * n).flatten()
        counts = torch.zeros(n * n + 1, dtype=torch.int64, device=pairs.device)
        counts.scatter_add_(0, pairs, torch.ones_like(pairs))  # bincount would wait for the GPU
        return torch.cat([counts[:-1], valid.sum()[None]])

    def metrics(self, scores):
        """Intersection over union in percent: of each class (None if it never occurs), mean."""
        confusion = scores[:-1].view(self.num_classes, -1)
        hits = confusion.diag()
        union = confusion.sum(0) + confusion.sum(1) - hits
        iou = [100 * h / u if u else None for h, u in zip(hits.tolist(), union.tolist())]
        present = [value for value in iou if value is not None]
        return {"miou": sum(present) / max(1, len(present)), "iou": iou}


TASKS = dict(cls=Classification, rot=Rotation, col=Colorization, jig=Jigsaw, seg=Segmentation)


def make_task(name, dataset, size, stem, layers, device, search=False) -> Task:
    """The task for a data set and a network of that stem and depth, if they fit each other."""
    targets = TASKS[name].targets
    if targets and getattr(dataset, targets) is None:
        raise InputError(f"task {name} needs {targets}: {getattr(dataset, f'why_no_{targets}')}")
    task = TASKS[name](dataset, size, stem, search, device)
    stride = total_stride(stem, layers, task.reductions)
    if task.input_size < stride:
        shown = f"task {name} shows the network {task.input_size} pixels"
        divided = f"which the {stem} stem and {layers} cells divide by {stride}"
        raise InputError(f"--size {size}: {shown}, {divided}, to less than one")
    task.classes = task.classes or [str(k) for k in range(task.num_classes)]
    return task


# ------------------------------------------------------------- What jigsaw and colorization look up


@lru_cache
def permutations(grid) -> np.ndarray:
    """(P, grid * grid) int64: all 24 permutations of a 2x2 grid in lexicographic order, 1000 of a
    3x3 grid that are far from each other: of 20,000 random ones, each time one whose distance
    (number of positions that differ) to the nearest of those already taken is largest, and among
    these one with the largest mean distance."""
    tiles = grid * grid
    if grid == 2:
        return np.array(list(itertools.permutations(range(tiles))))
    rng = np.random.RandomState(0)  # its stream is frozen: the same task in all versions of numpy
    candidates = np.argsort(rng.rand(20_000, tiles), axis=1).astype(np.int8)
    nearest, total, chosen = np.full(len(candidates), tiles), np.zeros(len(candidates)), [0]
    while len(chosen) < 1000:
        distance = (candidates != candidates[chosen[-1]]).sum(1)
        nearest = np.minimum(nearest, distance)
        total += distance
        chosen.append(int(np.argmax(nearest * 1e6 + total)))
    return candidates[chosen].astype(np.int64)


# The 313 colours of Zhang et al.: for a = -90, -80, ..., 100, the range of b in tens
B_LOW = [5, 2, 0, -2, -3, -4, -5, -5, -6, -7, -8, -8, -9, -10, -10, -11, -11, -11, -11, -9]
B_HIGH = [9, 9, 9, 9, 10, 10, 10, 10, 10, 10, 9, 9, 9, 9, 8, 8, 8, 7, 7, 0]
BINS = []
for a, (low, high) in enumerate(zip(B_LOW, B_HIGH), start=-9):
    BINS += [(10 * a, 10 * b) for b in range(low, high + 1)]

# sRGB to CIE XYZ (IEC 61966-2-1), and the white point D65 of the 2 degree observer
RGB_TO_XYZ = [
    [0.412453, 0.357580, 0.180423],
    [0.212671, 0.715160, 0.072169],
    [0.019334, 0.119193, 0.950227],
]
WHITE = [0.95047, 1.0, 1.08883]


def rgb_to_lab(rgb):
    """8-bit RGB (..., 3) -> CIE Lab (..., 3) in float64."""
    rgb = rgb.double() / 255
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = torch.tensor(RGB_TO_XYZ, dtype=torch.float64)
    xyz = linear @ to_xyz.T / torch.tensor(WHITE, dtype=torch.float64)
    f = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def lab_to_rgb(lab):
    """The inverse, in 0 .. 1; colours that sRGB lacks are clipped."""
    L, a, b = lab.double().unbind(-1)
    f = torch.stack([a / 500, 0 * a, -b / 200], -1) + (L.unsqueeze(-1) + 16) / 116
    xyz = torch.where(f > 0.206893, f**3, (f - 16 / 116) / 7.787) * torch.tensor(WHITE)
    linear = (xyz @ torch.tensor(RGB_TO_XYZ, dtype=torch.float64).inverse().T).clamp(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def nearest_bin(ab):
    """(N, 2) float64 -> (N,) index of the nearest bin. The bins lie on a grid of step 10: where the
    nearest point of the grid is a bin, it is the nearest bin; the others are compared with all."""
    bins = torch.tensor(BINS).double()
    on_grid = torch.full((23, 23), -1)  # [a / 10 + 11, b / 10 + 11]
    on_grid[tuple((bins / 10 + 11).long().T)] = torch.arange(len(bins))
    index = on_grid[tuple(((ab / 10).round() + 11).long().T)]
    rest = (index < 0).nonzero().squeeze(1)
    index[rest] = torch.cdist(ab[rest], bins, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return index


@lru_cache
def color_tables():
    """Lightness (2^24,) float32 and bin (2^24,) int16 of each colour r * 65536 + g * 256 + b."""
    lightness, bins = torch.empty(2**24), torch.empty(2**24, dtype=torch.int16)
    gb = torch.cartesian_prod(torch.arange(256), torch.arange(256))  # (65536, 2)
    for r in range(256):
        lab = rgb_to_lab(F.pad(gb, (1, 0), value=r))
        part = slice(r << 16, (r + 1) << 16)
        lightness[part], bins[part] = lab[:, 0], nearest_bin(lab[:, 1:])
    return lightness, bins
