"""Building blocks of both networks: candidate operations, stems, drop path.

`OPS[name](C, stride, affine, copies)` builds an operation on C channels. With `copies` = E it is E independent copies side
by side, in one module: copy e maps channels e*C .. (e+1)*C - 1 of its input to the same channels of its output. The fixed
network uses single ops; the supernet runs all the edges that leave a node as copies. An operation with weights is an
nn.Sequential that starts with its ReLU and ends with its BN, which the supernet takes off and applies itself.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def conv(C_in, C_out, kernel, stride=1, dilation=1, groups=1):
    """A convolution without bias that keeps the size at stride 1; `kernel` is odd."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(C_in, C_out, kernel, stride, padding, dilation, groups, bias=False)


class DepthwiseConv(nn.Conv2d):
    """A convolution of each channel on its own. Its gradients are the largest cost of a search on a CPU, where PyTorch's own
    for the input of a dilated one takes ten times as long as the forward pass."""

    def __init__(self, C, kernel, stride=1, dilation=1):
        super().__init__(
            C, C, kernel, stride, dilation * (kernel // 2), dilation, groups=C, bias=False
        )

    def forward(self, x):
        if (
            x.device.type == "cpu"
            and self.stride == (1, 1)
            and not torch.is_autocast_enabled("cpu")
        ):
            return Depthwise.apply(x, self.weight, self.padding, self.dilation)
        return super().forward(x)


class Depthwise(torch.autograd.Function):
    """Stride 1 at constant size: the gradient of the input is a convolution too, with the kernel turned by 180 degrees."""

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
        if ctx.needs_input_grad[1]:
            grad_weight = torch.nn.grad.conv2d_weight(x, weight.shape, grad, *ctx.geometry)
        return grad_x, grad_weight, None, None


def relu_conv_bn(C_in, C_out, affine):
    return nn.Sequential(nn.ReLU(), conv(C_in, C_out, 1), nn.BatchNorm2d(C_out, affine=affine))


def sep_conv(kernel):
    """Depthwise and pointwise convolution, twice; the first depthwise one has the stride."""

    def build(C, stride, affine, copies):
        EC = copies * C
        return nn.Sequential(
            nn.ReLU(),
            DepthwiseConv(EC, kernel, stride),
            conv(EC, EC, 1, groups=copies),
            nn.BatchNorm2d(EC, affine=affine),
            nn.ReLU(),
            DepthwiseConv(EC, kernel),
            conv(EC, EC, 1, groups=copies),
            nn.BatchNorm2d(EC, affine=affine),
        )

    return build


def dil_conv(kernel):
    """Depthwise convolution with dilation 2 and pointwise convolution. With stride 2 it reads every other pixel alone, so
    that it is a plain one on these (AvgPool2d(1, 2) takes them), several times faster."""

    def build(C, stride, affine, copies):
        EC = copies * C
        return nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(1, 2) if stride == 2 else nn.Identity(),
            DepthwiseConv(EC, kernel, dilation=2 // stride),
            conv(EC, EC, 1, groups=copies),
            nn.BatchNorm2d(EC, affine=affine),
        )

    return build


def conv_7x1_1x7(C, stride, affine, copies):
    EC = copies * C
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(EC, EC, (1, 7), (1, stride), (0, 3), groups=copies, bias=False),
        nn.Conv2d(EC, EC, (7, 1), (stride, 1), (3, 0), groups=copies, bias=False),
        nn.BatchNorm2d(EC, affine=affine),
    )


class HalfConvs(nn.Module):
    """Two 1x1 convolutions, one of the even pixels, one of the odd ones, to C_out/2 channels each. AvgPool2d(1, 2) takes
    every other pixel; with stride 2 instead, PyTorch's CPU kernel writes outside its memory in the backward pass (8 or 12
    channels in channels_last, maps of 56 x 56 and larger; seen in 2.9 and 2.14)."""

    def __init__(self, C_in, C_out, copies):
        super().__init__()
        self.copies = copies
        self.every_other = nn.AvgPool2d(1, 2)
        self.even = conv(copies * C_in, copies * C_out // 2, 1, groups=copies)
        self.odd = conv(copies * C_in, copies * C_out // 2, 1, groups=copies)

    def forward(self, x):  # (B, E*C_in, H, W)
        even = self.even(self.every_other(x))  # (B, E*C_out/2, ceil(H/2), ceil(W/2))
        # The odd pixels start at 1; a zero at right and bottom stands for the one that an odd size lacks.
        odd = self.odd(self.every_other(F.pad(x, (-1, 1, -1, 1))))
        halves = zip(even.chunk(self.copies, 1), odd.chunk(self.copies, 1))
        return torch.cat(
            [half for pair in halves for half in pair], 1
        )  # (B, E*C_out, ceil(H/2), ceil(W/2))


def factorized_reduce(C_in, C_out, affine, copies=1):
    """Halves height and width without losing every other pixel. C_out is even."""
    return nn.Sequential(
        nn.ReLU(), HalfConvs(C_in, C_out, copies), nn.BatchNorm2d(copies * C_out, affine=affine)
    )


class Zero(nn.Module):
    """The op `none` of a fixed network."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def skip_connect(C, stride, affine, copies):
    return nn.Identity() if stride == 1 else factorized_reduce(C, C, affine, copies)


OPS = {
    "none": lambda C, stride, affine, copies: Zero(stride),
    "max_pool_3x3": lambda C, stride, affine, copies: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda C, stride, affine, copies: nn.AvgPool2d(
        3, stride, padding=1, count_include_pad=False
    ),
    "skip_connect": skip_connect,
    "sep_conv_3x3": sep_conv(3),
    "sep_conv_5x5": sep_conv(5),
    "sep_conv_7x7": sep_conv(7),
    "dil_conv_3x3": dil_conv(3),
    "dil_conv_5x5": dil_conv(5),
    "conv_7x1_1x7": conv_7x1_1x7,
}


class CifarStem(nn.Sequential):
    """For images below 96 pixels or so: full resolution, 3C channels, for both inputs of the first cell."""

    stride, reduces = 1, False

    def __init__(self, C_in, C):
        self.C_out = 3 * C
        super().__init__(conv(C_in, 3 * C, 3), nn.BatchNorm2d(3 * C))

    def forward(self, x):  # (B, C_in, H, W)
        x = super().forward(x)  # (B, 3C, H, W)
        return x, x


class ImageNetStem(nn.Module):
    """Down to 1/8 of the resolution; the inputs of the first cell are those of a cell that follows a reduction."""

    stride, reduces = 8, True

    def __init__(self, C_in, C):
        super().__init__()
        self.C_out = C
        self.stem0 = nn.Sequential(
            conv(C_in, C // 2, 3, stride=2),
            nn.BatchNorm2d(C // 2),
            nn.ReLU(),
            conv(C // 2, C, 3, stride=2),
            nn.BatchNorm2d(C),
        )
        self.stem1 = nn.Sequential(nn.ReLU(), conv(C, C, 3, stride=2), nn.BatchNorm2d(C))

    def forward(self, x):  # (B, C_in, H, W)
        s0 = self.stem0(x)  # (B, C, H/4, W/4)
        s1 = self.stem1(s0)  # (B, C, H/8, W/8)
        return s0, s1


STEMS = {"cifar": CifarStem, "imagenet": ImageNetStem}


def default_stem(size):
    """The stem for images of so many pixels a side."""
    return "cifar" if size < 96 else "imagenet"


def reduction_cells(layers, reductions=2):
    """The indices of the cells with stride 2: at one and two thirds of the depth, or only the first of them."""
    return {(k + 1) * layers // 3 for k in range(reductions)}


def total_stride(stem, layers, reductions=2):
    """By how much a network divides height and width."""
    return STEMS[stem].stride * 2 ** len(reduction_cells(layers, reductions))


def drop_path(x, p):
    """Zeroes a path's output for a fraction p of the samples and scales the rest by 1 / (1 - p)."""
    keep = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - p)
    return x * (keep / (1 - p))
