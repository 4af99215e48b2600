"""Search a cell with DARTS, with or without labels (Sec. 4 of the paper).

Half of the training images train the weights of the supernet, the other half its alphas, in turns, first order. Writes
genotype.json after every epoch, which train.py trains, and at the end pictures of the cell and of how the alphas went.

    python search.py --task rot                                             # embedded data, two minutes on a CPU
    python search.py --task col --dataset cifar10 --data data/   # DARTS' settings on CIFAR-10
    python search.py --task jig --dataset folder --data my_photos/          # any images, no labels
    python search.py --task jig --dataset folder --data my_photos/ --resume
    torchrun --nproc_per_node=8 search.py --task rot --dataset imagenet --data imagenet/
    torchrun --nproc_per_node=8 search.py --task seg --dataset cityscapes --data cityscapes/
"""

import argparse
import time

import torch

import cli
import data
import genotypes
import model_search
import ops
import pretext
import utils
from cli import InputError, at_least

# The settings of a data set; options on the command line take precedence. shapes: for two minutes on two CPU cores. cifar10,
# and any data set that is not here: those of DARTS for CIFAR-10. The others: the paper's.
DEFAULTS = {
    "shapes": dict(limit=480, width=8, layers=3, epochs=2, batch_size=16, lr=0.05, alpha_lr=1e-2),
    "cifar10": dict(epochs=50, batch_size=64, lr=0.025, alpha_lr=3e-4),
    "imagenet": dict(
        size=224, epochs=2, alpha_start=1, batch_size=64, lr=0.1, alpha_lr=3e-4, weight_decay=3e-5
    ),
    "imagenet22k": dict(
        size=224,
        epochs=1,
        batch_size=256,
        lr=0.4,
        alpha_lr=1.2e-3,
        weight_decay=3e-5,
        save_every=2000,
    ),
    "cityscapes": dict(size=321, layers=12, epochs=400, batch_size=32, lr=0.1, alpha_lr=3e-4),
}
# Tasks with half of the batch size and of both learning rates
HALVED = {"imagenet": ("rot", "jig"), "imagenet22k": ("rot", "jig"), "cityscapes": ("rot", "col")}
COMMON = dict(save_every=0, width=16, layers=8, weight_decay=3e-4, grad_clip=5.0, alpha_start=0)


def settings(dataset, task):
    """What the tables say."""
    values = {**COMMON, **DEFAULTS.get(dataset, DEFAULTS["cifar10"])}
    if task in HALVED.get(dataset, ()):
        values |= {
            "batch_size": values["batch_size"] // 2,
            "lr": values["lr"] / 2,
            "alpha_lr": values["alpha_lr"] / 2,
        }
    if task == "jig" and dataset.startswith("imagenet"):
        values["size"] = 255
    return values


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Search a cell with DARTS, with or without labels."
    )
    parser.add_argument(
        "--task", choices=list(pretext.TASKS), default="rot", help="cls needs labels, seg masks"
    )
    data.add_arguments(parser.add_argument_group("data"))
    group = parser.add_argument_group("model (default: the table at the top of this script)")
    group.add_argument("--width", type=cli.even, help="channels of the first cells")
    group.add_argument("--layers", type=at_least(1, int), help="number of cells")
    group.add_argument(
        "--stem", choices=["cifar", "imagenet"], help="full or 1/8 resolution (default: by --size)"
    )
    group = parser.add_argument_group("optimiser (default: the table)")
    group.add_argument(
        "--epochs", type=at_least(1, int), help="passes over half of the training set"
    )
    group.add_argument(
        "--batch_size",
        type=at_least(2, int),
        help="images per step, from each half, of all ranks together",
    )
    group.add_argument(
        "--lr", type=at_least(0), help="learning rate of the weights: SGD, momentum 0.9, cosine"
    )
    group.add_argument("--weight_decay", type=at_least(0), help="of the weights")
    group.add_argument(
        "--grad_clip",
        type=at_least(0),
        help="largest norm of the weights' gradient; 0: no clipping",
    )
    group.add_argument(
        "--alpha_lr", type=at_least(0), help="learning rate of the alphas: Adam, weight decay 1e-3"
    )
    group.add_argument(
        "--alpha_start",
        type=at_least(0, int),
        metavar="EPOCHS",
        help="epochs before the first alpha step",
    )
    utils.add_run_arguments(parser.add_argument_group("run"))
    args = parser.parse_args(argv)
    utils.fill_defaults(args, settings(args.dataset, args.task))
    return args


def main(args):
    # --- set-up
    device = utils.setup(args)
    utils.check_batch_size(args.batch_size)
    if args.alpha_start >= args.epochs:
        raise InputError(
            f"--alpha_start {args.alpha_start}: with --epochs {args.epochs} the alphas would never be trained"
        )
    out = utils.open_run(args, f"search_{args.dataset}_{args.task}_s{args.seed}")

    # --- data
    train, test = data.load(args.dataset, args.data, args.size, args.limit, args.workers)
    args.size = args.size or train.size
    args.stem = args.stem or ops.default_stem(args.size)
    task = pretext.make_task(
        args.task, train, args.size, args.stem, args.layers, device, search=True
    )
    w_half, alpha_half = data.split_in_half(len(train), args.seed)
    test_part = None
    if test is None:  # ImageNet-22K has no evaluation images
        test, test_part = train, alpha_half[data.random_subset(len(alpha_half), data.HELD_OUT_22K)]
    split = data.split_hash(train, w_half, alpha_half)
    steps = len(w_half) // args.batch_size
    if not steps:
        raise InputError(
            f"--batch_size {args.batch_size}: half of the training set has {len(w_half)} images"
        )

    # --- model
    torch.manual_seed(args.seed)
    supernet = model_search.Supernet(args.width, args.layers, args.stem, task).to(
        device, memory_format=torch.channels_last
    )
    if args.sync_bn:
        supernet = torch.nn.SyncBatchNorm.convert_sync_batchnorm(supernet)
    alphas = model_search.init_alphas(device)
    torch.manual_seed(args.seed + utils.rank())  # equal networks, different augmentation

    # --- optimiser
    w_optimizer = torch.optim.SGD(
        supernet.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay
    )
    alpha_optimizer = torch.optim.Adam([alphas], args.alpha_lr, (0.5, 0.999), weight_decay=1e-3)
    autocast, scaler = utils.precision(device, args.amp)

    # --- resume
    identity = utils.identity_of(args, split=split, ops=genotypes.PRIMITIVES)
    parts = {
        "supernet": supernet,
        "w_optimizer": w_optimizer,
        "alpha_optimizer": alpha_optimizer,
        "scaler": scaler,
    }
    state = utils.resume(args, out, device, identity, parts)
    if "alphas" in state:
        alphas.data.copy_(state["alphas"])
    epochs_done, steps_done, seconds, history, meters = (state[name] for name in utils.PROGRESS)

    # --- loop
    environment = utils.environment(device)
    log = utils.Log(
        out, {"args": vars(args), **environment, "split": split}, epochs_done, steps_done
    )
    print(
        f"{args.task} on {args.dataset}: {len(w_half)} images for the weights, {len(alpha_half)} for the alphas (split "
        f"{split}); supernet of {utils.count_params(supernet) / 1e6:.2f} M parameters, {out}"
    )
    for line in data.describe(train, test):
        print(line)
    progress = utils.Progress(log, args, steps, epochs_done * steps + steps_done)

    def save(*how_far):
        utils.save_run(out, device, identity, parts, how_far, alphas=alphas.detach())

    def write_genotype(genotype, epoch, **more):
        meta = {
            "task": args.task,
            "dataset": args.dataset,
            "seed": args.seed,
            "epoch": epoch,
            "epochs": args.epochs,
            "seconds": round(seconds, 1),
            **environment,
            "history": history,
            **more,
        }
        if not utils.rank():
            cli.write_json(out / "genotype.json", {**genotypes.to_entry(genotype), "meta": meta})

    for epoch in range(epochs_done + 1, args.epochs + 1):
        start = time.time()
        lr = utils.cosine_lr(args.lr, epoch - 1, args.epochs)
        w_optimizer.param_groups[0]["lr"] = lr
        w_meter, alpha_meter = (utils.Meter(task, *state) for state in meters or [(), ()])
        search_alphas = epoch > args.alpha_start
        if not search_alphas:
            print(f"alphas frozen until epoch {args.alpha_start + 1}")
        supernet.train()
        w_batches = data.batches(
            train, task.view, args.batch_size, device, w_half, (args.seed, epoch, 0), steps_done
        )
        alpha_batches = data.batches(
            train, task.view, args.batch_size, device, alpha_half, (args.seed, epoch, 1), steps_done
        )
        for step, (w_batch, alpha_batch) in enumerate(
            zip(w_batches, alpha_batches), start=steps_done + 1
        ):
            if search_alphas:  # first order: at the present weights, whose gradients are not needed
                x, y = task.prepare(*alpha_batch, train=True)
                supernet.requires_grad_(False)
                with autocast:
                    logits = supernet(x, alphas)
                    loss = task.loss(logits, y)
                alpha_optimizer.zero_grad()
                scaler.scale(loss).backward()
                utils.average_gradients(
                    [alphas]
                )  # the official code leaves this out, so its ranks drift apart
                scaler.step(alpha_optimizer)
                supernet.requires_grad_(True)
                alpha_meter.update(loss, logits, y)

            x, y = task.prepare(*w_batch, train=True)
            with autocast:
                logits = supernet(x, alphas.detach())
                loss = task.loss(logits, y)
            w_optimizer.zero_grad()
            scaler.scale(loss).backward()
            utils.average_gradients(supernet.parameters())
            if args.grad_clip:
                scaler.unscale_(w_optimizer)
                torch.nn.utils.clip_grad_norm_(supernet.parameters(), args.grad_clip)
            scaler.step(w_optimizer)
            scaler.update()
            w_meter.update(loss, logits, y)

            progress.step(
                epoch, step, lambda: utils.finite(w_meter.result(), epoch, step, args.task)
            )
            stopping = utils.stop_requested()
            if stopping or (args.save_every and step % args.save_every == 0):
                save(
                    epoch - 1,
                    step,
                    seconds + time.time() - start,
                    history,
                    [w_meter.state(), alpha_meter.state()],
                )
            if stopping:
                utils.stop(out)

        utils.check_equal("alphas", alphas)
        genotype = model_search.derive(alphas)
        health = model_search.health(alphas, genotype)
        seconds += time.time() - start
        summary = {f"w_{name}": value for name, value in w_meter.result().items()}
        if search_alphas:
            result = utils.finite(alpha_meter.result(), epoch, steps, args.task)
            summary |= {f"alpha_{name}": value for name, value in result.items()}
        history.append({"epoch": epoch, "lr": lr, **summary, **health})
        counts = {"unreadable": utils.count_unreadable(train), "seconds": round(seconds, 1)}
        log.write(**history[-1], genotype=genotype._asdict(), **counts)
        print(f"epoch {epoch}/{args.epochs} done  " + cli.format_metrics(summary), flush=True)
        for i, cell in enumerate(("normal", "reduction")):
            print(
                f"  {cell} cell: alpha entropy {health['entropy'][i]:.4f}, skips {health['skips'][i]}, "
                f"convolutions {health['convs'][i]}"
            )
            if not health["convs"][i]:
                print(
                    f"  warning: the {cell} cell has no convolution; the search may have collapsed"
                )
        write_genotype(genotype, epoch)
        steps_done, meters = 0, None
        save(epoch, steps_done, seconds, history, meters)

    # --- the cell that was found
    genotype = model_search.derive(alphas)
    test_batches = data.batches(test, task.view, args.batch_size, device, test_part)
    result = utils.evaluate(supernet, task, test_batches, autocast, alphas)
    write_genotype(
        genotype, args.epochs, evaluation=utils.finite(result, args.epochs, steps, args.task)
    )
    print("supernet on the evaluation images: " + cli.format_metrics(result))
    if not utils.rank():
        title = f"{args.task} on {args.dataset}, seed {args.seed}"
        genotypes.draw(genotype, out / "cell.png", f"{title}:")
        genotypes.draw_history({title: history}, out / "alphas.png")
    print(f"{genotypes.to_text(genotype)}\n{out / 'genotype.json'}, cell.png, alphas.png")
    utils.finish()
    return genotype


if __name__ == "__main__":
    cli.run(main, parse_args)
