"""Search a cell with DARTS, with or without labels (Sec. 4 of the paper).

One half of the training images trains the weights of the supernet, the other half its alphas, in
turns, first order. Writes genotype.json after every epoch, which train.py trains, and at the end
pictures of the cell and of the alpha history.

    python search.py --task rot                                    # embedded data, two CPU minutes
    python search.py --task col --dataset cifar10 --data data/     # DARTS' settings on CIFAR-10
    python search.py --task jig --dataset folder --data my_photos/ # any images, no labels
    python search.py --task jig --dataset folder --data my_photos/ --resume
    torchrun --nproc_per_node=8 search.py --task rot --dataset imagenet --data imagenet/
    torchrun --nproc_per_node=8 search.py --task seg --dataset cityscapes --data cityscapes/
"""

import argparse

import torch
from torch.nn.utils import clip_grad_norm_

import cli
import data
import genotypes
import model_search
import ops
import pretext
import runs
import utils
import visualize
from cli import InputError, at_least, format_metrics, table_row

# The paper's settings, on CIFAR-10 those of DARTS; shapes: two minutes on two CPU cores. A size of
# None is that of the images. The first row that fits a run counts, `*` fits any data set or task.
# fmt: off
DEFAULTS = [
    ("dataset",     "task",    "size", "limit", "width", "layers", "epochs", "alpha_start",
     "batch_size", "lr", "alpha_lr", "weight_decay", "grad_clip", "save_every"),
    ("shapes",      "*",         None,  480,  8,  3,   2, 0,  16, 0.05,  1e-2,   3e-4, 5.0, 0),
    ("imagenet",    "jig",        255, None, 16,  8,   2, 1,  32, 0.05,  1.5e-4, 3e-5, 5.0, 0),
    ("imagenet",    "rot",        224, None, 16,  8,   2, 1,  32, 0.05,  1.5e-4, 3e-5, 5.0, 0),
    ("imagenet",    "cls col *",  224, None, 16,  8,   2, 1,  64, 0.1,   3e-4,   3e-5, 5.0, 0),
    ("imagenet22k", "jig",        255, None, 16,  8,   1, 0, 128, 0.2,   6e-4,   3e-5, 5.0, 2000),
    ("imagenet22k", "rot",        224, None, 16,  8,   1, 0, 128, 0.2,   6e-4,   3e-5, 5.0, 2000),
    ("imagenet22k", "cls col *",  224, None, 16,  8,   1, 0, 256, 0.4,   1.2e-3, 3e-5, 5.0, 2000),
    ("cityscapes",  "rot col",    321, None, 16, 12, 400, 0,  16, 0.05,  1.5e-4, 3e-4, 5.0, 0),
    ("cityscapes",  "seg jig *",  321, None, 16, 12, 400, 0,  32, 0.1,   3e-4,   3e-4, 5.0, 0),
    ("cifar10 folder *", "*",    None, None, 16,  8,  50, 0,  64, 0.025, 3e-4,   3e-4, 5.0, 0),
]
# fmt: on


def parse_args(argv=None):
    chosen = cli.peek(argv, dataset="shapes", task="rot")
    parser = argparse.ArgumentParser(
        description="Search a cell with DARTS, with or without labels. The defaults below are those"
        " of the given --dataset and --task.",
        formatter_class=cli.HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--task", choices=list(pretext.TASKS), help="cls needs labels, seg masks")
    data.add_arguments(parser.add_argument_group("data"))
    add = parser.add_argument_group("model").add_argument
    add("--width", type=cli.even, help="channels of the first cells")
    add("--layers", type=at_least(1, int), help="number of cells")
    add("--stem", choices=list(ops.STEMS), help="full or 1/8 resolution (default: by --size)")
    add = parser.add_argument_group("optimiser").add_argument
    add("--epochs", type=at_least(1, int), help="passes over half of the training set")
    add("--batch_size", type=at_least(2, int), help="images per step of each half, of all ranks")
    add("--lr", type=at_least(0), help="of the weights: SGD, momentum 0.9, cosine by epoch")
    add("--weight_decay", type=at_least(0), help="of the weights")
    add("--grad_clip", type=at_least(0), help="largest norm of the weights' gradient; 0: any")
    add("--alpha_lr", type=at_least(0), help="of the alphas: Adam, weight decay 1e-3")
    add("--alpha_start", type=at_least(0, int), help="epochs before the first alpha step")
    runs.add_arguments(parser.add_argument_group("run"))
    parser.set_defaults(**chosen, **table_row(DEFAULTS, *chosen.values()))
    return parser.parse_args(argv)


def main(args):
    # --- set-up
    device = utils.setup(args)
    if args.alpha_start >= args.epochs:
        raise InputError(f"--alpha_start {args.alpha_start}: no alpha step in {args.epochs} epochs")
    run = runs.Run(args, f"search_{args.dataset}_{args.task}_s{args.seed}", device)

    # --- data
    train_set, test_set = data.load(args.dataset, args.data, args.size, args.limit, args.workers)
    args.size = args.size or train_set.size
    args.stem = args.stem or ops.default_stem(args.size)
    task = pretext.make_task(
        args.task, train_set, args.size, args.stem, args.layers, device, search=True
    )
    w_split, alpha_split = data.split_in_half(len(train_set), args.seed)
    test_split = None
    if test_set is None:  # ImageNet-22K has no evaluation images
        test_set = train_set
        test_split = alpha_split[data.random_subset(len(alpha_split), data.HELD_OUT_22K)]
    utils.check_batch_size(args.batch_size, len(w_split))

    # --- model
    torch.manual_seed(args.seed)
    supernet = model_search.Supernet(args.width, args.layers, args.stem, **task.network_args)
    supernet = utils.place(supernet, device, args.sync_bn)
    alphas = model_search.init_alphas(device)
    torch.manual_seed(args.seed + utils.rank())  # equal networks, different augmentation

    # --- optimiser
    weights, w_decay = supernet.parameters(), args.weight_decay
    w_optimizer = torch.optim.SGD(weights, args.lr, momentum=0.9, weight_decay=w_decay)
    alpha_optimizer = torch.optim.Adam([alphas], args.alpha_lr, (0.5, 0.999), weight_decay=1e-3)
    autocast, scaler = utils.precision(device, args.amp)

    # --- loop
    w_meter, alpha_meter = utils.Meter(task), utils.Meter(task)
    run.identify(split=data.split_hash(train_set, w_split, alpha_split), ops=genotypes.PRIMITIVES)
    run.start(
        parts={
            **{"supernet": supernet, "alphas": torch.nn.ParameterList([alphas])},
            **{"w_optimizer": w_optimizer, "alpha_optimizer": alpha_optimizer, "scaler": scaler},
        },
        meters={"w": w_meter, "alpha": alpha_meter},
        steps=len(w_split) // args.batch_size,
    )
    run.print(
        f"{args.task} on {args.dataset}: {len(w_split)} images for the weights, {len(alpha_split)}"
        f" for the alphas; supernet of {utils.count_params(supernet) / 1e6:.2f} M parameters"
    )
    run.print(*data.describe(train_set, test_set))
    if device.type == "cuda" and not args.deterministic:
        B = args.batch_size // utils.world_size()
        x = torch.ones(B, *task.input_shape[1:], device=device)
        run.print(utils.choose_layout(supernet, autocast, x, alphas.detach()))

    source = train_set, task.view, args.batch_size, device
    for epoch in run.epochs():
        lr = utils.cosine_lr(args.lr, epoch - 1, args.epochs)
        w_optimizer.param_groups[0]["lr"] = lr
        train_alphas = epoch > args.alpha_start
        if not train_alphas:
            run.print(f"alphas frozen until epoch {args.alpha_start + 1}")
        supernet.train()
        w_batches = data.batches(*source, w_split, (args.seed, epoch, 0), run.steps_done)
        alpha_batches = data.batches(*source, alpha_split, (args.seed, epoch, 1), run.steps_done)
        for w_batch, alpha_batch in zip(w_batches, alpha_batches):
            # Alpha step, first order: at the present weights, whose gradients are not needed
            if train_alphas:
                x, y = task.prepare(*alpha_batch, train=True)
                supernet.requires_grad_(False)
                with autocast:
                    logits = supernet(x, alphas)
                    loss = task.loss(logits, y)
                alpha_optimizer.zero_grad()
                scaler.scale(loss).backward()
                utils.average_gradients([alphas])  # the official code's ranks drift apart here
                scaler.step(alpha_optimizer)
                supernet.requires_grad_(True)
                alpha_meter.update(loss, logits, y)

            # Weight step: at the new alphas
            x, y = task.prepare(*w_batch, train=True)
            with autocast:
                logits = supernet(x, alphas.detach())
                loss = task.loss(logits, y)
            w_optimizer.zero_grad()
            scaler.scale(loss).backward()
            utils.average_gradients(supernet.parameters())
            if args.grad_clip:
                scaler.unscale_(w_optimizer)
                clip_grad_norm_(supernet.parameters(), args.grad_clip)
            scaler.step(w_optimizer)
            scaler.update()
            w_meter.update(loss, logits, y)
            run.after_step()

        utils.check_equal("alphas", alphas)
        genotype = model_search.derive(alphas)
        stats = model_search.alpha_stats(alphas, genotype)
        unreadable = utils.count_distinct(train_set.unreadable)
        run.after_epoch(lr, stats, genotype=genotype._asdict(), unreadable=unreadable)
        write_genotype(run, genotype)
        for cell, entropy, skips, convs in zip(("normal", "reduction"), *stats.values()):
            run.print(f"  {cell}: alpha entropy {entropy:.4f}, skips {skips}, convolutions {convs}")
            if not convs:
                run.print(f"  warning: the {cell} cell has no convolution: a collapsed search?")

    # --- the cell that was found
    genotype = model_search.derive(alphas)
    test_batches = data.batches(test_set, task.view, args.batch_size, device, test_split)
    result = run.check_finite(utils.evaluate(supernet, task, test_batches, autocast, alphas))
    write_genotype(run, genotype, evaluation=result)
    run.print(f"supernet on the evaluation images: {format_metrics(result)}")
    if not utils.rank():
        title = f"{args.task} on {args.dataset}, seed {args.seed}"
        visualize.draw_cell(genotype, run.out / "cell.png", f"{title}:")
        visualize.draw_history({title: run.history}, run.out / "alphas.png")
    run.print(f"{genotypes.to_text(genotype)}\n{run.out / 'genotype.json'}, cell.png, alphas.png")
    run.finish()
    return genotype


def write_genotype(run, genotype, **more):
    args = run.args
    meta = {
        **{"task": args.task, "dataset": args.dataset, "seed": args.seed, "epochs": args.epochs},
        **{"epoch": run.epochs_done, "seconds": round(run.seconds, 1), **run.environment},
        **{"identity": run.identity, "history": run.history, **more},
    }
    run.write_json("genotype.json", {**genotypes.to_entry(genotype), "meta": meta})


if __name__ == "__main__":
    cli.run(main, parse_args)
