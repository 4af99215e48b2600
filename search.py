"""Search a cell with DARTS, with or without labels (Sec. 4 of the paper).

Half of the training images train the weights of the supernet, the other half its alphas, in turns, first order. Writes
genotype.json after every epoch; train.py trains the cell that it holds.

    python search.py --task rot                                             # embedded data, two minutes on a CPU
    python search.py --task col --dataset cifar10 --data data/ --download   # DARTS' settings on CIFAR-10
    python search.py --task jig --dataset folder --data my_photos/          # any images, no labels
    python search.py --task jig --dataset folder --data my_photos/ --resume
"""

import argparse
import time

import torch

import data
import errors
import genotypes
import model_search
import ops
import pretext
import utils
from errors import InputError, at_least

# The settings of a data set; options on the command line take precedence. cifar10 and folder: those of DARTS for CIFAR-10.
# shapes: for two minutes on two CPU cores.
DEFAULTS = {
    "shapes": dict(size=32, limit=640, width=8, layers=3, epochs=2, batch_size=16, lr=0.05, alpha_lr=1e-2),
    "cifar10": dict(size=32, width=16, layers=8, epochs=50, batch_size=64, lr=0.025, alpha_lr=3e-4),
    "folder": dict(size=32, width=16, layers=8, epochs=50, batch_size=64, lr=0.025, alpha_lr=3e-4),
}
COMMON = dict(weight_decay=3e-4, grad_clip=5.0, alpha_weight_decay=1e-3, alpha_start=0)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Search a cell with DARTS, with or without labels.")
    parser.add_argument("--task", choices=list(pretext.TASKS), default="rot", help="the objective; only cls needs labels")
    group = parser.add_argument_group("data")
    data.add_arguments(group)
    group = parser.add_argument_group("model (default: the table at the top of this script)")
    group.add_argument("--width", type=errors.even, help="channels of the first cells")
    group.add_argument("--layers", type=at_least(1, int), help="number of cells")
    group.add_argument("--stem", choices=["cifar", "imagenet"], help="full or 1/8 resolution (default: by --size)")
    group = parser.add_argument_group("optimiser (default: the table)")
    group.add_argument("--epochs", type=at_least(1, int), help="passes over half of the training set")
    group.add_argument("--batch_size", type=at_least(2, int), help="images per step, from each half")
    group.add_argument("--lr", type=at_least(0), help="learning rate of the weights: SGD, momentum 0.9, cosine")
    group.add_argument("--weight_decay", type=at_least(0), help="of the weights")
    group.add_argument("--grad_clip", type=at_least(0), help="largest norm of the weights' gradient; 0: no clipping")
    group.add_argument("--alpha_lr", type=at_least(0), help="learning rate of the alphas: Adam, betas 0.5, 0.999")
    group.add_argument("--alpha_weight_decay", type=at_least(0), help="of the alphas")
    group.add_argument("--alpha_start", type=at_least(0, int), metavar="EPOCHS", help="epochs before the first alpha step")
    utils.add_run_arguments(parser.add_argument_group("run"))
    args = parser.parse_args(argv)
    utils.fill_defaults(args, {**COMMON, **DEFAULTS[args.dataset]})
    utils.fill_defaults(args, {"stem": ops.default_stem(args.size)})
    return args


def main(args):
    # --- set-up
    device = utils.setup(args)
    if args.alpha_start >= args.epochs:
        raise InputError(f"--alpha_start {args.alpha_start}: with --epochs {args.epochs} the alphas would never be trained")
    out = utils.open_run(args, f"search_{args.dataset}_{args.task}_s{args.seed}")

    # --- data
    train, test = data.load(args.dataset, args.data, args.size, args.limit, args.download)
    task = pretext.make_task(args.task, train, args.size, args.stem, args.layers, device)
    w_half, alpha_half = data.halves(len(train), args.seed)
    split = data.split_hash(train, w_half, alpha_half)
    steps = len(w_half) // args.batch_size
    if not steps:
        raise InputError(f"--batch_size {args.batch_size}: half of the training set has {len(w_half)} images")

    # --- model
    utils.seed_everything(args.seed)
    supernet = model_search.Supernet(args.width, args.layers, args.stem, task.in_channels, task.head)
    supernet = supernet.to(device, memory_format=torch.channels_last)
    alphas = model_search.init_alphas(device)

    # --- optimiser
    w_optimizer = torch.optim.SGD(supernet.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay)
    alpha_optimizer = torch.optim.Adam([alphas], args.alpha_lr, (0.5, 0.999), weight_decay=args.alpha_weight_decay)

    # --- resume
    identity = utils.identity_of(args, split=split, ops=genotypes.PRIMITIVES)
    epochs_done, seconds, history = 0, 0.0, []
    if args.resume and (out / "checkpoint.pt").exists():
        state = utils.load_checkpoint(out, identity)
        supernet.load_state_dict(state["supernet"])
        alphas.data.copy_(state["alphas"])
        w_optimizer.load_state_dict(state["w_optimizer"])
        alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        epochs_done, seconds, history = state["epoch"], state["seconds"], state["history"]
        utils.restore_rng(state, device)
        print(f"resumed after epoch {epochs_done}")

    # --- loop
    environment = utils.environment(device)
    log = utils.Log(out, {"args": vars(args), **environment, "split": split}, epochs_done)
    print(f"{args.task} on {args.dataset}: {len(w_half)} images for the weights, {len(alpha_half)} for the alphas (split "
          f"{split}); supernet of {utils.count_params(supernet) / 1e6:.2f} M parameters, {out}")  # fmt: skip
    data.print_unreadable(train, test)
    progress = utils.Progress(log, args, steps, epochs_done)

    def write_genotype(genotype, epoch, **more):
        meta = {"task": args.task, "dataset": args.dataset, "seed": args.seed, "epoch": epoch, "epochs": args.epochs,
                "seconds": round(seconds, 1), **environment, "history": history, **more}  # fmt: skip
        genotypes.save_genotype(out / "genotype.json", genotype, **meta)

    for epoch in range(epochs_done + 1, args.epochs + 1):
        start = time.time()
        lr = utils.cosine_lr(args.lr, epoch - 1, args.epochs)
        w_optimizer.param_groups[0]["lr"] = lr
        w_meter, alpha_meter = utils.Meter(task), utils.Meter(task)
        search_alphas = epoch > args.alpha_start
        if not search_alphas:
            print(f"alphas frozen until epoch {args.alpha_start + 1}")
        supernet.train()
        w_batches = data.batches(train, task, args.batch_size, device, w_half, (args.seed, epoch))
        alpha_batches = data.batches(train, task, args.batch_size, device, alpha_half, (args.seed, epoch))
        for step, (w_batch, alpha_batch) in enumerate(zip(w_batches, alpha_batches), start=1):
            if search_alphas:  # first order: at the present weights, whose gradients are not needed
                x, y = task.prepare(*alpha_batch, train=True)
                supernet.requires_grad_(False)
                logits = supernet(x, alphas)
                loss = task.loss(logits, y)
                alpha_optimizer.zero_grad()
                loss.backward()
                alpha_optimizer.step()
                supernet.requires_grad_(True)
                alpha_meter.update(loss, logits, y)

            x, y = task.prepare(*w_batch, train=True)
            logits = supernet(x, alphas.detach())
            loss = task.loss(logits, y)
            w_optimizer.zero_grad()
            loss.backward()
            if args.grad_clip:
                torch.nn.utils.clip_grad_norm_(supernet.parameters(), args.grad_clip)
            w_optimizer.step()
            w_meter.update(loss, logits, y)

            progress.step(epoch, step, lambda: utils.finite(w_meter.result(), epoch, step, args.task))

        genotype = model_search.derive(alphas)
        health = model_search.health(alphas, genotype)
        seconds += time.time() - start
        summary = {f"w_{name}": value for name, value in w_meter.result().items()}
        if search_alphas:
            result = utils.finite(alpha_meter.result(), epoch, step, args.task)
            summary |= {f"alpha_{name}": value for name, value in result.items()}
        history.append({"epoch": epoch, "lr": lr, **summary, **health})
        log.write(**history[-1], genotype=genotype._asdict(), seconds=round(seconds, 1))
        print(f"epoch {epoch}/{args.epochs} done  " + utils.numbers(summary), flush=True)
        for i, cell in enumerate(("normal", "reduction")):
            print(f"  {cell} cell: alpha entropy {health['entropy'][i]:.4f}, skips {health['skips'][i]}, "
                  f"convolutions {health['convs'][i]}")  # fmt: skip
            if not health["convs"][i]:
                print(f"  warning: the {cell} cell has no convolution; the search may have collapsed")
        write_genotype(genotype, epoch)
        utils.save_checkpoint(out, {
            "identity": identity, "epoch": epoch, "seconds": seconds, "history": history, "alphas": alphas.detach(),
            "supernet": supernet.state_dict(), "w_optimizer": w_optimizer.state_dict(),
            "alpha_optimizer": alpha_optimizer.state_dict(),
        }, device)  # fmt: skip

    # --- the cell that was found
    genotype = model_search.derive(alphas)
    result = utils.evaluate(supernet, task, data.batches(test, task, args.batch_size, device), alphas)
    write_genotype(genotype, args.epochs, evaluation=utils.finite(result, args.epochs, steps, args.task))
    print(f"supernet on {len(test)} evaluation images: " + utils.numbers(result))
    print(f"{genotypes.to_text(genotype)}\n{out / 'genotype.json'}")
    return genotype


if __name__ == "__main__":
    errors.run(main, parse_args())
