"""Building blocks of both networks: candidate operations, stems, heads, drop path.

`OPS[name](C, stride, affine, copies)` builds an operation on C channels. With `copies` = E it is E
independent copies side by side in one module: copy e maps channels e*C .. (e+1)*C - 1 of its input
to those of its output. The supernet has a copy for each edge that leaves a node.
"""

from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def conv(C_in, C_out, kernel, stride=1, dilation=1, groups=1):
    """A convolution without bias that keeps the size at stride 1; `kernel` is odd."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(C_in, C_out, kernel, stride, padding, dilation, groups, bias=False)


class DepthwiseConv(nn.Conv2d):
    """A convolution of each channel on its own. Its gradients are the largest cost of a search on a
    CPU: with dilation, PyTorch's own for the input takes ten times as long as the forward pass."""

    def __init__(self, C, kernel, stride=1, dilation=1):
        padding = dilation * (kernel // 2)
        super().__init__(C, C, kernel, stride, padding, dilation, groups=C, bias=False)

    def forward(self, x):
        autocast = torch.is_autocast_enabled("cpu")
        if x.device.type == "cpu" and self.stride == (1, 1) and not autocast:
            return DepthwiseFunction.apply(x, self.weight, self.padding, self.dilation)
        return super().forward(x)


class DepthwiseFunction(torch.autograd.Function):
    """Stride 1: the gradient of the input is a convolution by the kernel, turned by 180°. With
    dilation, that of the kernel sums products of shifted inputs and the gradient of the output, in
    a third of the time of PyTorch's own."""

    @staticmethod
    def forward(ctx, x, weight, padding, dilation):
        ctx.save_for_backward(x, weight)
        ctx.geometry = (1, padding, dilation, len(weight))
        return F.conv2d(x, weight, None, *ctx.geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = F.conv2d(grad, weight.flip(2, 3), None, *ctx.geometry)
        _, padding, dilation, _ = ctx.geometry
        if ctx.needs_input_grad[1] and dilation == (1, 1):
            grad_weight = torch.nn.grad.conv2d_weight(x, weight.shape, grad, *ctx.geometry)
        elif ctx.needs_input_grad[1]:
            H, W = grad.shape[2:]
            x = F.pad(x, 2 * padding)
            shifts = range(0, dilation[0] * weight.shape[2], dilation[0])  # of a square kernel
            taps = [x[:, :, i : i + H, j : j + W] for i in shifts for j in shifts]
            grad_weight = torch.stack([(tap * grad).sum((0, 2, 3)) for tap in taps], 1)
            grad_weight = grad_weight.view_as(weight)
        return grad_x, grad_weight, None, None


class ReLUConvBN(nn.Module):
    """What every operation with weights is: ReLU, the layers `convs`, BN. The supernet uses `convs`
    and `bn` by name: its ops share the ReLU, and its BN applies the weights of the mixed op too."""

    def __init__(self, *convs, bn):
        super().__init__()
        self.convs = nn.Sequential(*convs)
        self.bn = bn

    def forward(self, x):
        return self.bn(self.convs(F.relu(x)))


def relu_conv_bn(C_in, C_out, affine):
    return ReLUConvBN(conv(C_in, C_out, 1), bn=nn.BatchNorm2d(C_out, affine=affine))


def sep_conv(kernel, C, stride, affine, copies):
    """Depthwise and pointwise convolution, twice; the first depthwise one has the stride."""
    EC = copies * C
    first = DepthwiseConv(EC, kernel, stride), conv(EC, EC, 1, groups=copies)
    between = nn.BatchNorm2d(EC, affine=affine), nn.ReLU()
    second = DepthwiseConv(EC, kernel), conv(EC, EC, 1, groups=copies)
    return ReLUConvBN(*first, *between, *second, bn=nn.BatchNorm2d(EC, affine=affine))


def dil_conv(kernel, C, stride, affine, copies):
    """Depthwise convolution with dilation 2 and pointwise convolution. With stride 2 it reads only
    every other pixel: AvgPool2d(1, 2) takes these, and no dilation is several times faster."""
    EC = copies * C
    taken = nn.AvgPool2d(1, 2) if stride == 2 else nn.Identity()
    convs = DepthwiseConv(EC, kernel, dilation=2 // stride), conv(EC, EC, 1, groups=copies)
    return ReLUConvBN(taken, *convs, bn=nn.BatchNorm2d(EC, affine=affine))


def conv_7x1_1x7(C, stride, affine, copies):
    EC = copies * C
    along_rows = nn.Conv2d(EC, EC, (1, 7), (1, stride), (0, 3), groups=copies, bias=False)
    along_columns = nn.Conv2d(EC, EC, (7, 1), (stride, 1), (3, 0), groups=copies, bias=False)
    return ReLUConvBN(along_rows, along_columns, bn=nn.BatchNorm2d(EC, affine=affine))


class EvenOddConv(nn.Module):
    """Two 1x1 convolutions, of the even and of the odd pixels, to C_out/2 channels each.
    Pooling takes every other pixel, as PyTorch's CPU kernel of stride 2 writes out of bounds in the
    backward pass (8 or 12 channels in channels_last, maps from 56 x 56; seen in 2.9 and 2.14)."""

    def __init__(self, C_in, C_out, copies):
        super().__init__()
        self.copies = copies
        self.even = conv(copies * C_in, copies * C_out // 2, 1, groups=copies)
        self.odd = conv(copies * C_in, copies * C_out // 2, 1, groups=copies)

    def forward(self, x):  # (B, E*C_in, H, W)
        even = self.even(F.avg_pool2d(x, 1, 2))  # (B, E*C_out/2, ceil(H/2), ceil(W/2))
        # The odd pixels start at 1; an odd size lacks the last, so a zero at right and bottom.
        odd = self.odd(F.avg_pool2d(F.pad(x, (-1, 1, -1, 1)), 1, 2))
        pairs = zip(even.chunk(self.copies, 1), odd.chunk(self.copies, 1))
        return torch.cat([y for pair in pairs for y in pair], 1)  # (B, E*C_out, ...)


def factorized_reduce(C_in, C_out, affine, copies=1):
    """Half the height and width, without losing every other pixel. C_out is even."""
    bn = nn.BatchNorm2d(copies * C_out, affine=affine)
    return ReLUConvBN(EvenOddConv(C_in, C_out, copies), bn=bn)


class Zero(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


OPS = {
    "none": lambda C, stride, affine, copies: Zero(stride),
    "max_pool_3x3": lambda C, stride, affine, copies: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda C, stride, affine, copies: nn.AvgPool2d(
        3, stride, padding=1, count_include_pad=False
    ),
    "skip_connect": lambda C, stride, affine, copies: (
        nn.Identity() if stride == 1 else factorized_reduce(C, C, affine, copies)
    ),
    "sep_conv_3x3": partial(sep_conv, 3),
    "sep_conv_5x5": partial(sep_conv, 5),
    "sep_conv_7x7": partial(sep_conv, 7),
    "dil_conv_3x3": partial(dil_conv, 3),
    "dil_conv_5x5": partial(dil_conv, 5),
    "conv_7x1_1x7": conv_7x1_1x7,
}


class CifarStem(nn.Sequential):
    """For images below 96 pixels or so: full resolution, 3C channels for both first inputs."""

    stride, reduces = 1, False

    def __init__(self, C_in, C):
        self.C_out = 3 * C
        super().__init__(conv(C_in, 3 * C, 3), nn.BatchNorm2d(3 * C))

    def forward(self, x):  # (B, C_in, H, W)
        x = super().forward(x)  # (B, 3C, H, W)
        return x, x


class ImageNetStem(nn.Module):
    """Down to 1/8 of the resolution. The first cell counts as one that follows a reduction cell."""

    stride, reduces = 8, True

    def __init__(self, C_in, C):
        super().__init__()
        self.C_out = C
        first = conv(C_in, C // 2, 3, stride=2), nn.BatchNorm2d(C // 2), nn.ReLU()
        self.stem0 = nn.Sequential(*first, conv(C // 2, C, 3, stride=2), nn.BatchNorm2d(C))
        self.stem1 = nn.Sequential(nn.ReLU(), conv(C, C, 3, stride=2), nn.BatchNorm2d(C))

    def forward(self, x):  # (B, C_in, H, W)
        s0 = self.stem0(x)  # (B, C, H/4, W/4)
        return s0, self.stem1(s0)  # and (B, C, H/8, W/8)


STEMS = {"cifar": CifarStem, "imagenet": ImageNetStem}


def default_stem(size):
    """The stem for images of so many pixels a side."""
    return "cifar" if size < 96 else "imagenet"


def reduction_cells(layers, reductions=2):
    """Indices of the cells with stride 2: at one and two thirds of the depth, or only the first."""
    return {(k + 1) * layers // 3 for k in range(reductions)}


def total_stride(stem, layers, reductions=2):
    """By how much a network divides height and width."""
    return STEMS[stem].stride * 2 ** len(reduction_cells(layers, reductions))


def drop_path(x, p):
    """Zeroes each sample of x (B, C, H, W) with probability p, scales the others by 1 / (1 - p)."""
    keep = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - p)
    return x * (keep / (1 - p))


# --------------------------------------------------------------------------------------------------
# Heads: called with the features (B, C, h, w) and the (H, W) of the network's input


class PooledHead(nn.Module):
    """Global average pool and a linear layer, which gets the features of all views (tiles)."""

    def __init__(self, C, num_classes, views=1):
        super().__init__()
        self.classifier = nn.Linear(views * C, num_classes)

    def forward(self, x, size):  # (B*views, C, h, w)
        x = x.mean((2, 3)).view(-1, self.classifier.in_features)  # (B, views*C)
        return self.classifier(x)  # (B, num_classes)


class PixelHead(nn.Module):
    """A linear layer at each position, then bilinear upsampling to the input's size."""

    def __init__(self, C, num_classes):
        super().__init__()
        self.classifier = nn.Conv2d(C, num_classes, 1)

    def forward(self, x, size):
        x = self.classifier(x)  # (B, classes, h, w)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)  # (B, .., H, W)


class ASPPHead(nn.Module):
    """Atrous spatial pyramid pooling, Chen et al. 2017: side by side a 1x1 convolution, a dilated
    3x3 convolution for each rate and the global average; then a PixelHead's classifier."""

    def __init__(self, C, num_classes, channels, rates):
        super().__init__()

        def branch(C_in, kernel=1, rate=1):
            layer = conv(C_in, channels, kernel, dilation=rate)
            return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())

        self.branches = nn.ModuleList([branch(C), *(branch(C, 3, rate) for rate in rates)])
        self.pooled = branch(C)
        self.merge = branch((len(rates) + 2) * channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x, size):  # (B, C, h, w)
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        x = torch.cat([*(branch(x) for branch in self.branches), pooled], 1)  # (B, .., h, w)
        x = self.classifier(self.merge(x))  # (B, classes, h, w)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)  # (B, .., H, W)
