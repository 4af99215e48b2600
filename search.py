"""Search a cell with DARTS or PC-DARTS, with or without labels: the search-based experiments.

One half of the training images trains the weights of the supernet, the other half its alphas, in
turns, first order. Writes genotype.json after every epoch, which train.py trains, and at the end
pictures of the cell, of the alpha history and of the final weights.

    python search.py --task rot                                    # embedded data, two CPU minutes
    python search.py --task col --dataset cifar10 --data data/ --partial 4         # PC-DARTS'
    python search.py --task jig --dataset folder --data my_photos/ # any images, no labels
    torchrun --nproc_per_node=8 search.py --task rot --dataset imagenet --data imagenet/
"""

import argparse
import itertools

import cli
import torch
from cli import InputError, at_least, format_metrics, table_row
from torch.nn.utils import clip_grad_norm_

import data
import genotypes
import model_search
import ops
import pretext
import runs
import utils
import visualize

# The paper's settings, on CIFAR-10 those of DARTS, with partial channels those of PC-DARTS; shapes:
# two minutes on two CPU cores. A size of None is that of the images, images of None are one half
# each. The first row that fits a run counts, `*` fits any data set, task or --partial.
# fmt: off
DEFAULTS = [
    ("dataset",     "task",  "partial", "size", "limit", "images", "width", "layers", "epochs",
     "alpha_start", "batch_size", "lr", "alpha_lr", "weight_decay", "save_every"),
    ("shapes",      "*",         "*",   16,  480, None,  8,  3,   8, 0, 16, 0.05, 1e-2,   3e-4, 0),
    ("imagenet",    "jig",       "1",  255, None, None, 16,  8,   2, 1, 32, 0.05, 1.5e-4, 3e-5, 0),
    ("imagenet",    "rot",       "1",  224, None, None, 16,  8,   2, 1, 32, 0.05, 1.5e-4, 3e-5, 0),
    ("imagenet",    "cls col *", "1",  224, None, None, 16,  8,   2, 1, 64, 0.1,  3e-4,   3e-5, 0),
    ("imagenet",    "jig", "*", 255, None, [0.1, 0.025], 16, 8, 50, 35, 1024, 0.5, 6e-3, 3e-4, 0),
    ("imagenet",    "*",   "*", 224, None, [0.1, 0.025], 16, 8, 50, 35, 1024, 0.5, 6e-3, 3e-4, 0),
    ("imagenet22k", "jig", "*", 255, None, None, 16, 8, 1, 0, 128, 0.2, 6e-4, 3e-5, 2000),
    ("imagenet22k", "rot", "*", 224, None, None, 16, 8, 1, 0, 128, 0.2, 6e-4, 3e-5, 2000),
    ("imagenet22k", "cls col *", "*", 224, None, None, 16, 8, 1, 0, 256, 0.4, 1.2e-3, 3e-5, 2000),
    ("cityscapes",  "rot col",   "*",  321, None, None, 16, 12, 400, 0, 16, 0.05, 1.5e-4, 3e-4, 0),
    ("cityscapes",  "seg jig *", "*",  321, None, None, 16, 12, 400, 0, 32, 0.1,  3e-4,   3e-4, 0),
    ("cifar10 folder *", "*", "1", None, None, None, 16,  8,  50,  0,  64, 0.025, 3e-4,   3e-4, 0),
    ("cifar10 folder *", "*", "*", None, None, None, 16,  8,  50, 15, 256, 0.1,   6e-4,   3e-4, 0),
]
# fmt: on


def parse_args(argv=None):
    chosen = cli.peek(argv, dataset="shapes", task="rot", partial="1")
    text = "Search a cell with DARTS. The defaults are those of --dataset, --task and --partial."
    parser = argparse.ArgumentParser(
        description=text, formatter_class=cli.HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--task", choices=list(pretext.TASKS), help="cls needs labels, seg masks")
    group = parser.add_argument_group("data")
    data.add_arguments(group)
    text = "shares for weights and alphas, for cls of each class; without it: a half each"
    group.add_argument("--images", nargs=2, type=at_least(0), metavar=("W", "ALPHA"), help=text)
    add = parser.add_argument_group("model").add_argument
    add("--width", type=cli.even, help="channels of the first cells")
    add("--layers", type=at_least(1, int), help="number of cells")
    add("--partial", type=at_least(1, int), metavar="K", help="1/K of the channels go through ops")
    add("--stem", choices=list(ops.STEMS), help="full or 1/8 resolution (default: by --size)")
    add = parser.add_argument_group("optimiser").add_argument
    add("--epochs", type=at_least(1, int), help="passes over the images for the weights")
    add("--batch_size", type=at_least(2, int), help="images per step and half, over all ranks")
    add("--lr", type=at_least(0), help="of the weights: SGD, momentum 0.9, cosine by epoch")
    add("--weight_decay", type=at_least(0), help="of the weights")
    add("--grad_clip", type=at_least(0), help="largest norm of the weights' gradient; 0: any")
    add("--alpha_lr", type=at_least(0), help="of the alphas: Adam, weight decay 1e-3")
    add("--alpha_start", type=at_least(0, int), help="epochs before the first alpha step")
    add = parser.add_argument_group("collapse to skip connections").add_argument
    add("--max_skips", type=at_least(0, int), metavar="N", help="in a normal cell; the weakest go")
    add("--stop_skips", type=at_least(1, int), metavar="N", help="stop at N in the normal cell")
    add("--stop_stable", type=at_least(1, int), metavar="N", help="stop if cells hold for N epochs")
    runs.add_arguments(parser.add_argument_group("run"))
    row = table_row(DEFAULTS, *chosen.values())
    parser.set_defaults(grad_clip=5.0, max_skips=8, **chosen, **row)
    return parser.parse_args(argv)


def main(args):
    # --- set-up
    device = utils.setup(args)
    if args.alpha_start >= args.epochs:
        raise InputError(f"--alpha_start {args.alpha_start}: no alpha step in {args.epochs} epochs")
    if args.width % args.partial:
        raise InputError(f"--partial {args.partial} does not divide --width {args.width}")
    run = runs.Run(args, f"search_{args.dataset}_{args.task}_s{args.seed}", device)

    # --- data
    train_set, test_set = data.load(args.dataset, args.data, args.size, args.limit, args.workers)
    args.size = args.size or train_set.size
    args.stem = args.stem or ops.default_stem(args.size)
    setting = args.size, args.stem, args.layers, device
    task = pretext.make_task(args.task, train_set, *setting, search=True)
    w_split, alpha_split = data.split(
        train_set, args.seed, args.images, by_class=task.targets == "labels"
    )
    test_split = None
    if test_set is None:  # ImageNet-22K has no evaluation images
        test_set = train_set
        test_split = alpha_split[data.random_subset(len(alpha_split), data.HELD_OUT_22K)]
    utils.check_batch_size(args.batch_size, min(len(w_split), len(alpha_split)))

    # --- model
    torch.manual_seed(args.seed)
    shape = args.width, args.layers, args.stem
    supernet = model_search.Supernet(*shape, **task.network_args, partial=args.partial)
    supernet = utils.place(supernet, device, args.sync_bn)
    arch = [model_search.init_alphas(device)]
    if args.partial > 1:
        arch.append(model_search.init_betas(device))
    torch.manual_seed(args.seed + utils.rank())  # equal networks, different augmentation

    # --- optimiser
    weights, w_decay = supernet.parameters(), args.weight_decay
    w_optimizer = torch.optim.SGD(weights, args.lr, momentum=0.9, weight_decay=w_decay)
    alpha_optimizer = torch.optim.Adam(arch, args.alpha_lr, (0.5, 0.999), weight_decay=1e-3)
    autocast, scaler = utils.precision(device, args.amp)

    # --- loop
    w_meter, alpha_meter = utils.Meter(task), utils.Meter(task)
    split = data.split_hash(train_set, w_split, alpha_split)
    run.identify(split=split, files=data.split_hash(train_set), ops=genotypes.PRIMITIVES)
    parts = {"supernet": supernet, "alphas": torch.nn.ParameterList(arch)}
    parts |= {"w_optimizer": w_optimizer, "alpha_optimizer": alpha_optimizer, "scaler": scaler}
    meters = {"w": w_meter, "alpha": alpha_meter}
    run.start(parts, meters, steps=len(w_split) // args.batch_size)
    images = f"{len(w_split)} images for the weights, {len(alpha_split)} for the alphas"
    size = f"supernet of {sum(w.numel() for w in supernet.parameters()) / 1e6:.2f} M parameters"
    run.print(f"{args.task} on {args.dataset}: {images}; {size}")
    run.print(*data.describe(train_set))
    if device.type == "cuda" and not args.deterministic:
        targets = args.batch_size * task.targets_per_image
        like = targets, task.input_shape, *(values.detach() for values in arch)
        run.print(utils.choose_layout(supernet, autocast, *like))

    source = train_set, task.view, args.batch_size, device
    stopped = None
    for epoch in run.epochs():
        if stopped := why_stop(args, run.history):  # here, so that a resumed search stops, too
            run.print(f"stopped after epoch {epoch - 1}: {stopped}")
            break
        lr = utils.cosine_lr(args.lr, epoch - 1, args.epochs)
        w_optimizer.param_groups[0]["lr"] = lr
        train_alphas = epoch > args.alpha_start
        if not train_alphas:
            run.print(f"alphas frozen until epoch {args.alpha_start + 1}")
        supernet.train()
        w_batches = data.batches(*source, w_split, (args.seed, epoch, 0), run.steps_done)
        alpha_batches = itertools.repeat(None)
        if train_alphas:
            alpha_batches = in_passes(source, alpha_split, (args.seed, epoch), run.steps_done)
        for w_batch, alpha_batch in zip(w_batches, alpha_batches):
            # Alpha step, first order: at the present weights, whose gradients are not needed
            if train_alphas:
                x, y = task.prepare(*alpha_batch, train=True)
                supernet.requires_grad_(False)
                with autocast:
                    logits = supernet(x, *arch)
                    loss = task.loss(logits, y)
                alpha_optimizer.zero_grad()
                scaler.scale(loss).backward()
                utils.average_gradients(arch)  # the official code's ranks drift apart here
                scaler.step(alpha_optimizer)
                supernet.requires_grad_(True)
                alpha_meter.update(loss, logits, y)

            # Weight step: at the new alphas
            x, y = task.prepare(*w_batch, train=True)
            with autocast:
                logits = supernet(x, *(values.detach() for values in arch))
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

        genotype = model_search.derive(*arch, max_skips=args.max_skips)
        stats = model_search.alpha_stats(arch[0], genotype)
        results = dict(stats)
        for name, values in zip(("alphas", "betas"), arch):
            utils.check_equal(name, values)
            results[name] = values.tolist()
        unreadable = utils.count_distinct(train_set.unreadable)
        run.after_epoch(lr, results, genotype=genotype._asdict(), unreadable=unreadable)
        write_genotype(run, genotype)
        for cell, entropy, skips, convs in zip(("normal", "reduction"), *stats.values()):
            run.print(f"  {cell}: alpha entropy {entropy:.4f}, skips {skips}, convolutions {convs}")
            if not convs:
                run.print(f"  warning: the {cell} cell has no convolution: a collapsed search?")
        if genotype != (unlimited := model_search.derive(*arch)):
            skips = model_search.alpha_stats(arch[0], unlimited)["skips"][0]
            run.print(f"  --max_skips {args.max_skips}: the normal cell had {skips} skips")

    # --- the cell that was found
    genotype = model_search.derive(*arch, max_skips=args.max_skips)
    if test_split is not None:  # some of the training images, which may be unreadable
        bad = set().union(*utils.gather({*train_set.unreadable}))
        readable = [train_set.path(i) not in bad for i in test_split.tolist()]
        test_split = test_split[torch.tensor(readable)]
    test_batches = data.batches(test_set, task.view, args.batch_size, device, test_split)
    result = run.check_finite(utils.evaluate(supernet, task, test_batches, autocast, *arch))
    write_genotype(run, genotype, evaluation=result, stopped=stopped)
    run.print(f"supernet on the evaluation images: {format_metrics(result)}")
    if not utils.rank():
        title = genotypes.search_title(vars(args) | {"identity": run.identity})
        visualize.draw_cell(genotype, run.out / "cell.png", f"{title}:")
        visualize.draw_history({title: run.history}, run.out / "alphas.png")
        visualize.draw_weights(genotype, run.history[-1], run.out / "weights.png", f"{title}:")
    run.print(genotypes.to_text(genotype))
    run.print(f"{run.out / 'genotype.json'}, cell.png, alphas.png, weights.png")
    run.finish()
    return genotype


def in_passes(source, index, seed, skip):
    """Batches without end, from batch `skip` on: passes over the images, each with an order and
    crops of its own."""
    _, _, batch_size, _ = source
    k, skip = divmod(skip, len(index) // batch_size)
    while True:
        yield from data.batches(*source, index, (*seed, 1 + k), skip)
        k, skip = k + 1, 0


def why_stop(args, history):
    """Why a search ends before its last epoch, or None: the rules of DARTS+ (Liang et al. 2019), on
    the cells that the last epochs with alpha steps would give without --max_skips."""
    history = history[args.alpha_start :][-1 - (args.stop_stable or 0) :]
    if not history:
        return
    last = history[-1]
    arch = [torch.tensor(last[name]) for name in ("alphas", "betas") if name in last]
    skips = model_search.alpha_stats(arch[0], model_search.derive(*arch))["skips"][0]
    if args.stop_skips and skips >= args.stop_skips:
        return f"{skips} skip connections in the normal cell"
    if args.stop_stable:
        import likeness  # here, as few searches need it and its scipy.stats takes a second

        cells = likeness.decided({"history": history, "identity": {}})
        if min(stood for stood, *_ in cells) > args.stop_stable:
            return f"the same cells for {args.stop_stable} epochs"


def write_genotype(run, genotype, **more):
    args = run.args
    meta = {"task": args.task, "dataset": args.dataset, "seed": args.seed, "epochs": args.epochs}
    meta |= {"epoch": run.epochs_done, "seconds": round(run.seconds, 1), **run.environment}
    meta |= {"identity": run.identity, "history": run.history, **more}
    run.write_json("genotype.json", {**genotypes.to_entry(genotype), "meta": meta})


if __name__ == "__main__":
    cli.run(main, parse_args)
