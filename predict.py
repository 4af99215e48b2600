"""Draw what a trained segmentation network makes of a few evaluation images, beside the image and its mask.

python predict.py runs/cityscapes_small/train_seg_darts_v2_s0 --data cityscapes/ --out predictions.png
"""

import argparse
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import cli
import data
import genotypes
import model_eval
import pretext
import utils
from cli import InputError, at_least


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Draw predictions of a network that train.py trained on seg."
    )
    parser.add_argument("run", help="the folder of the training")
    parser.add_argument(
        "--data", metavar="PATH", help="where the data set is (default: where it was in training)"
    )
    parser.add_argument(
        "--images", type=at_least(1, int), default=4, metavar="N", help="how many, evenly chosen"
    )
    parser.add_argument("--out", metavar="FILE", help="default: predictions.png in the folder")
    return parser.parse_args(argv)


def main(args):
    run = Path(args.run)
    result = cli.read_json(run / "result.json")
    if result["task"] != "seg":
        raise InputError(
            f"{run} was trained on {result['task']}; only seg has a prediction for each pixel"
        )
    saved = argparse.Namespace(**result["args"])
    _, test = data.load(saved.dataset, args.data or saved.data, saved.size, saved.limit)
    task = pretext.make_task("seg", test, saved.size, saved.stem, saved.layers, "cpu")
    genotype = genotypes.load_arch(str(run / "result.json"))
    network = model_eval.build_network(genotype, saved.width, saved.layers, saved.stem, task).eval()
    network.load_state_dict(utils.load_checkpoint(run, {})["network"])

    chosen = torch.linspace(0, len(test) - 1, min(args.images, len(test))).long()
    palette = torch.tensor(colormaps["tab20"].colors)

    def colored(classes):  # (H, W) -> (H, W, 3), black where nothing counts
        return torch.where(
            (classes == 255)[..., None], torch.zeros(3), palette[classes.clamp(max=19)]
        )

    figure, seen = Figure(figsize=(9, 2.4 * len(chosen)), layout="constrained"), set()
    axes = figure.subplots(len(chosen), 3, squeeze=False)
    for row, batch in zip(axes, data.batches(test, task.view, 1, "cpu", chosen)):
        with torch.inference_mode():
            x, _ = task.prepare(*batch, train=False)
            prediction = network(x).argmax(1)[0, :-1, :-1]  # (H, W), without the padding
        image, mask = batch[0][0].permute(1, 2, 0), batch[1][0].long()
        seen.update(mask.unique().tolist(), prediction.unique().tolist())
        for ax, picture in zip(row, (image, colored(mask), colored(prediction))):
            ax.imshow(picture.numpy())
            ax.set_axis_off()
    for ax, title in zip(
        axes[0], ("image", "mask", f"prediction, mIoU {result['final']:.1f} over all")
    ):
        ax.set_title(title, fontsize=10)
    handles = [
        Patch(color=palette[c].tolist(), label=test.mask_classes[c]) for c in sorted(seen - {255})
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    out = args.out or run / "predictions.png"
    figure.savefig(out, dpi=120)
    print(out)


if __name__ == "__main__":
    cli.run(main, parse_args)
