"""Train one architecture from scratch on one task (Sec. 3 and 4 of the paper), evaluate it after every epoch.

Writes result.json at the end.

    python train.py --arch runs/search_shapes_rot_s0/genotype.json              # a found cell, embedded data, on a CPU
    python train.py --arch darts_v2 --dataset cifar10 --data data/ --download   # DARTS' evaluation on CIFAR-10
    python train.py --arch archs.json:00004 --task jig --dataset folder --data my_photos/
    python train.py --arch darts_v2 --dataset cifar10 --data data/ --resume
"""

import argparse
import time

import torch
from torch.optim.swa_utils import update_bn

import data
import errors
import genotypes
import model_eval
import ops
import pretext
import utils
from errors import InputError, at_least

# The settings of a recipe, data set, task and space; options on the command line take precedence.
EVALUATION = {  # classification as DARTS evaluates a cell, Sec. 4
    "cifar10": dict(width=36, layers=20, epochs=600, batch_size=96, lr=0.025, weight_decay=3e-4, nesterov=False,
                    grad_clip=5.0, auxiliary=0.4, cutout=16, drop_path=0.2),
}  # fmt: skip
EVALUATION["folder"] = dict(EVALUATION["cifar10"], auxiliary=0.0)  # the auxiliary head does not fit every --size
SAMPLE_BASED = dict(epochs=100, weight_decay=5e-4, nesterov=True, precise_bn=1024)  # Sec. 3.3
SAMPLE_BASED_TASKS = {
    "cls": dict(batch_size=128, lr=0.1),
    "col": dict(batch_size=128, lr=0.1),
    "rot": dict(batch_size=32, lr=0.025),
    "jig": dict(batch_size=32, lr=0.025),
}
SAMPLE_BASED_SIZES = {"darts": dict(width=16, layers=20), "nasbench101": dict(width=128, layers=9)}
SHAPES = dict(epochs=4, batch_size=25, lr=0.05, weight_decay=3e-4, nesterov=True, grad_clip=5.0)  # small, for a CPU
SHAPES_SIZES = {"darts": dict(width=8, layers=4), "nasbench101": dict(width=16, layers=3)}
COMMON = dict(size=32, grad_clip=0.0, warmup_epochs=0, auxiliary=0.0, cutout=0, drop_path=0.0, label_smoothing=0.0,
              precise_bn=0)  # fmt: skip


def settings(recipe, dataset, task, space):
    """What the tables say; a task of one's own has the settings of rot."""
    if dataset == "shapes":
        return {**COMMON, **SHAPES, **SHAPES_SIZES[space]}
    if recipe == "evaluation" and task == "cls" and space == "darts":
        return {**COMMON, **EVALUATION[dataset]}
    tasks = SAMPLE_BASED_TASKS.get(task, SAMPLE_BASED_TASKS["rot"])
    return {**COMMON, **SAMPLE_BASED, **tasks, **SAMPLE_BASED_SIZES[space]}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Train one architecture on one task and evaluate it.")
    parser.add_argument("--arch", required=True, help="a name (darts_v2), a genotype.json, or archs.json:ID")
    parser.add_argument("--task", choices=list(pretext.TASKS), default="cls", help="only cls needs labels")
    parser.add_argument("--recipe", choices=["evaluation", "sample"], default="evaluation",
                        help="settings for cls: those of the search-based or of the sample-based study")  # fmt: skip
    group = parser.add_argument_group("data")
    data.add_arguments(group)
    group = parser.add_argument_group("model (default: the table at the top of this script)")
    group.add_argument("--width", type=errors.even, help="channels of the first cells")
    group.add_argument("--layers", type=at_least(1, int), help="number of cells")
    group.add_argument("--stem", choices=["cifar", "imagenet"], help="full or 1/8 resolution (default: by --size)")
    group.add_argument("--auxiliary", type=at_least(0), metavar="WEIGHT", help="of the auxiliary head's loss; 0: no head")
    group.add_argument(
        "--drop_path", type=at_least(0, below=1), metavar="P", help="grows from 0 in the first epoch towards P"
    )
    group = parser.add_argument_group("optimiser: SGD, momentum 0.9, cosine by epoch (default: the table)")
    group.add_argument("--epochs", type=at_least(1, int), help="passes over the training set")
    group.add_argument("--batch_size", type=at_least(2, int), help="images per step")
    group.add_argument("--lr", type=at_least(0), help="peak of the learning rate's cosine, which falls to 0")
    group.add_argument("--warmup_epochs", type=at_least(0, int), help="linear from a tenth of the learning rate")
    group.add_argument("--weight_decay", type=at_least(0), help="of all weights")
    group.add_argument("--nesterov", action=argparse.BooleanOptionalAction, help="Nesterov's momentum")
    group.add_argument("--grad_clip", type=at_least(0), help="largest norm of the gradient; 0: no clipping")
    group.add_argument("--label_smoothing", type=at_least(0, below=1), help="probability spread over all classes")
    group.add_argument("--cutout", type=at_least(0, int), metavar="PIXELS", help="side of a square that is zeroed; 0: none")
    group.add_argument("--precise_bn", type=at_least(0, int), nargs="?", const=1024, metavar="IMAGES",
                       help="re-estimate BN statistics on about so many images (1024) before each evaluation")  # fmt: skip
    utils.add_run_arguments(parser.add_argument_group("run"))
    return parser.parse_args(argv)


def main(args, load=data.load):
    """Returns what result.json holds. sample.py passes a `load` that keeps the data in memory."""
    # --- set-up
    device = utils.setup(args)
    genotype = genotypes.load_arch(args.arch)
    arch, space = genotypes.short_name(args.arch), genotypes.to_entry(genotype)["space"]
    utils.fill_defaults(args, settings(args.recipe, args.dataset, args.task, space))
    utils.fill_defaults(args, {"stem": ops.default_stem(args.size)})
    if args.drop_path and space == "nasbench101":
        raise InputError(f"--drop_path {args.drop_path}: only networks of DARTS cells have it")
    out = utils.open_run(args, f"train_{arch}_{args.dataset}_{args.task}_s{args.seed}")

    # --- data
    train, test = load(args.dataset, args.data, args.size, args.limit, args.download)
    task = pretext.make_task(args.task, train, args.size, args.stem, args.layers, device)
    split = data.split_hash(train, test)
    steps = len(train) // args.batch_size
    if not steps:
        raise InputError(f"--batch_size {args.batch_size}: the training set has {len(train)} images")

    # --- model
    def build(auxiliary_classes=0):
        return model_eval.build_network(
            genotype, args.width, args.layers, args.stem, task.in_channels, task.head, auxiliary_classes
        )

    macs = utils.count_macs(build, task)
    with torch.device("meta"):
        params = utils.count_params(build())  # without the auxiliary head, as in the paper
    if args.auxiliary:
        model_eval.check_auxiliary(task, args.stem, args.layers)
    utils.seed_everything(args.seed)
    network = build(task.num_classes if args.auxiliary else 0).to(device, memory_format=torch.channels_last)

    # --- optimiser
    optimizer = torch.optim.SGD(
        network.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay, nesterov=args.nesterov
    )

    # --- resume
    identity = utils.identity_of(args, split=split, genotype=genotypes.to_text(genotype).replace("\n", " "))
    if args.resume and (out / "result.json").exists():
        result = genotypes.read_json(out / "result.json")
        utils.check_identity(out / "result.json", result.get("identity", {}), identity)
        print(f"finished: {out / 'result.json'}")
        return result
    epochs_done, seconds, history = 0, 0.0, []
    if args.resume and (out / "checkpoint.pt").exists():
        state = utils.load_checkpoint(out, identity)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        epochs_done, seconds, history = state["epoch"], state["seconds"], state["history"]
        utils.restore_rng(state, device)
        print(f"resumed after epoch {epochs_done}")

    # --- loop
    header = {"args": vars(args), **utils.environment(device), "split": split}
    log = utils.Log(out, header, epochs_done)
    print(f"{arch}, {args.task} on {args.dataset}: {len(train)} images to train, {len(test)} to evaluate (split {split}); "
          f"{params / 1e6:.3f} M parameters, {macs / 1e6:.1f} M MACs; {out}")  # fmt: skip
    data.print_unreadable(train, test)
    progress = utils.Progress(log, args, steps, epochs_done)
    for epoch in range(epochs_done + 1, args.epochs + 1):
        start = time.time()
        lr = utils.cosine_lr(args.lr, epoch - 1, args.epochs, args.warmup_epochs)
        optimizer.param_groups[0]["lr"] = lr
        network.drop_path = args.drop_path * (epoch - 1) / args.epochs
        network.train()
        meter = utils.Meter(task)
        for step, batch in enumerate(data.batches(train, task, args.batch_size, device, seed=(args.seed, epoch)), start=1):
            x, y = task.prepare(*batch, train=True)
            x = pretext.cutout(x, args.cutout) if args.cutout else x
            outputs = network(x)
            logits, *logits_aux = outputs if args.auxiliary else (outputs,)
            loss = total = task.loss(logits, y, args.label_smoothing)
            for aux in logits_aux:
                total = total + args.auxiliary * task.loss(aux, y, args.label_smoothing)
            optimizer.zero_grad()
            total.backward()
            if args.grad_clip:
                torch.nn.utils.clip_grad_norm_(network.parameters(), args.grad_clip)
            optimizer.step()
            meter.update(loss, logits, y)
            progress.step(epoch, step, lambda: utils.finite(meter.result(), epoch, step, args.task))

        if args.precise_bn:  # on full batches alone, as update_bn gives every batch the same weight
            network.drop_path = 0.0
            some = data.choose(len(train), max(args.precise_bn, args.batch_size))
            some = data.batches(train, task, args.batch_size, device, some, (args.seed, epoch))
            update_bn((task.prepare(*batch, train=True)[0] for batch in some), network)
        result = utils.evaluate(network, task, data.batches(test, task, args.batch_size, device))
        result = utils.finite(result, epoch, steps, args.task)
        seconds += time.time() - start
        summary = {**{f"train_{name}": value for name, value in meter.result().items()}, **result}
        history.append({"epoch": epoch, "lr": lr, **summary})
        log.write(**history[-1], seconds=round(seconds, 1))
        print(f"epoch {epoch}/{args.epochs} done  " + utils.numbers(summary), flush=True)
        utils.save_checkpoint(out, {
            "identity": identity, "epoch": epoch, "seconds": seconds, "history": history,
            "network": network.state_dict(), "optimizer": optimizer.state_dict(),
        }, device)  # fmt: skip

    # --- result
    scores = [line[task.metric] for line in history]
    best = max(scores) if task.higher_is_better else min(scores)
    result = {
        "arch": arch, "space": space, "genotype": genotype._asdict(), "task": args.task, "dataset": args.dataset,
        "seed": args.seed, "metric": task.metric, "higher_is_better": task.higher_is_better,
        "best": best, "final": scores[-1], "params": params, "macs": macs, "seconds": round(seconds, 1),
        "epochs": history, "identity": identity, **header,
    }  # fmt: skip
    utils.write_json(out / "result.json", result)
    print(f"{task.metric}: best {best:.2f}, last {scores[-1]:.2f}, {utils.clock(seconds)}; {out / 'result.json'}")
    return result


if __name__ == "__main__":
    errors.run(main, parse_args())
