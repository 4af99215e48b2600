"""Pretext tasks image by image in numpy and scipy, as public code does them: the baseline of the
speed table. An image is uint8 (H, W, 3)."""

import numpy as np
from scipy.spatial import cKDTree

import data
import pretext

NEAREST_BIN = cKDTree(np.array(pretext.BINS))
TO_XYZ, WHITE = np.array(pretext.RGB_TO_XYZ).T, np.array(pretext.WHITE)
MEAN, STD = np.array((data.ImageSet.mean, data.ImageSet.std), np.float32)
LUMA = np.array([0.2125, 0.7154, 0.0721], np.float32)


def baseline_col(image):
    rgb = image / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ TO_XYZ / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    ab = np.stack([500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)
    bins = NEAREST_BIN.query(ab.reshape(-1, 2))[1].reshape(image.shape[:2])
    return (116 * f[..., 1] - 16).astype(np.float32), bins


def baseline_rot(image):
    x = (image[:, :: np.random.choice((-1, 1))].astype(np.float32) / 255 - MEAN) / STD
    return np.stack([np.rot90(x, k).transpose(2, 0, 1) for k in range(4)]), np.arange(4)


def baseline_jig(image):
    grid = 2 if len(image) == 32 else 3
    patch, perms = len(image) // grid, pretext.permutations(grid)
    tile = int(0.76 * patch)
    x = image[:, :: np.random.choice((-1, 1))].astype(np.float32) / 255
    if np.random.rand() < 0.3:
        x = np.repeat((x @ LUMA)[..., None], 3, -1)
    target = np.random.randint(len(perms))
    tiles = np.empty((grid * grid, 3, tile, tile), np.float32)
    for k in range(grid * grid):
        corner = patch * np.array([k // grid, k % grid])
        top, left = np.random.randint(0, patch - tile + 1, 2) + corner
        part = x[top : top + tile, left : left + tile]
        tiles[perms[target, k]] = ((part - part.mean()) / part.std()).transpose(2, 0, 1)
    return tiles, target
