"""Train one architecture from scratch on one task (Sec. 3 and 4 of the paper), evaluate it after every epoch.

Writes result.json at the end.

    python train.py --arch runs/search_shapes_rot_s0/genotype.json              # a found cell, embedded data, on a CPU
    python train.py --arch darts_v2 --dataset cifar10 --data data/   # DARTS' evaluation on CIFAR-10
    python train.py --arch archs.json:00004 --task jig --dataset folder --data my_photos/
    python train.py --arch darts_v2 --dataset cifar10 --data data/ --resume
    torchrun --nproc_per_node=8 train.py --arch unnas_imagenet_rot --dataset imagenet --data imagenet/
    torchrun --nproc_per_node=8 train.py --arch darts_v2 --task seg --dataset cityscapes --data cityscapes/
"""

import argparse
import bisect
import time

import torch
from torch.optim.swa_utils import update_bn

import cli
import data
import genotypes
import model_eval
import ops
import pretext
import utils
from cli import InputError, at_least

# The settings of a recipe, data set, task and space; options on the command line take precedence.
EVALUATION = {  # Sec. 4; on CIFAR-10 as DARTS evaluates a cell
    ("cifar10", "cls"): dict(
        width=36,
        layers=20,
        epochs=600,
        batch_size=96,
        lr=0.025,
        weight_decay=3e-4,
        nesterov=False,
        grad_clip=5.0,
        auxiliary=0.4,
        cutout=16,
        drop_path=0.2,
    ),
    ("imagenet", "cls"): dict(
        size=224,
        max_macs=600e6,
        layers=14,
        epochs=250,
        batch_size=1024,
        lr=0.5,
        weight_decay=3e-5,
        warmup_epochs=5,
        label_smoothing=0.1,
        auxiliary=0.4,
    ),
    ("cityscapes", "seg"): dict(
        size=769, width=80, layers=12, epochs=2700, batch_size=64, lr=0.1, weight_decay=1e-4
    ),
}
EVALUATION["folder", "cls"] = dict(
    EVALUATION["cifar10", "cls"], auxiliary=0.0
)  # a head that does not fit every --size
SAMPLE_BASED = dict(epochs=100, weight_decay=5e-4, precise_bn=1024)  # Sec. 3.3, CIFAR-10
SAMPLE_BASED_TASKS = {
    "cls": dict(batch_size=128, lr=0.1),
    "col": dict(batch_size=128, lr=0.1),
    "rot": dict(batch_size=32, lr=0.025),
    "jig": dict(batch_size=32, lr=0.025),
}
SAMPLE_BASED_SIZES = {"darts": dict(width=16, layers=20), "nasbench101": dict(width=128, layers=9)}
SAMPLE_BASED_IMAGENET = {  # and for the other large data sets, which the paper's sample-based study has not
    "darts": dict(width=32, layers=22, epochs=5, precise_bn=1024),
    "nasbench101": dict(width=128, layers=12, epochs=10),
}
LARGE = dict(size=224, batch_size=32, lr=0.0125, weight_decay=5e-5)
SHAPES = dict(
    epochs=4, batch_size=25, lr=0.05, weight_decay=3e-4, grad_clip=5.0
)  # small, for a CPU
SHAPES_SIZES = {"darts": dict(width=8, layers=4), "nasbench101": dict(width=16, layers=3)}
COMMON = dict(
    save_every=0,
    max_macs=None,
    nesterov=True,
    grad_clip=0.0,
    warmup_epochs=0,
    auxiliary=0.0,
    cutout=0,
    drop_path=0.0,
    label_smoothing=0.0,
    precise_bn=0,
)


def settings(recipe, dataset, task, space):
    """What the tables say; a task of one's own has the settings of rot."""
    if dataset == "shapes":
        return {**COMMON, **SHAPES, **SHAPES_SIZES[space]}
    if recipe == "evaluation" and space == "darts" and (dataset, task) in EVALUATION:
        return {**COMMON, **EVALUATION[dataset, task]}
    if dataset in ("imagenet", "imagenet22k", "cityscapes"):
        size = (
            dict(size=321) if dataset == "cityscapes" else dict(size=255) if task == "jig" else {}
        )
        return {**COMMON, **LARGE, **SAMPLE_BASED_IMAGENET[space], **size}
    tasks = SAMPLE_BASED_TASKS.get(task, SAMPLE_BASED_TASKS["rot"])
    return {**COMMON, **SAMPLE_BASED, **tasks, **SAMPLE_BASED_SIZES[space]}


def widest(macs_at, max_macs, smallest=2):
    """The largest even width whose network needs at most that many MACs, which grow with the width."""
    widths = range(smallest, 2048, 2)
    fitting = bisect.bisect_right(widths, max_macs, key=macs_at)
    if not fitting:
        raise InputError(
            f"--max_macs {max_macs:.4g}: a network of width {smallest} needs {macs_at(smallest):.4g}"
        )
    return widths[fitting - 1]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Train one architecture on one task and evaluate it."
    )
    parser.add_argument(
        "--arch", required=True, help="a name (darts_v2), a genotype.json, or archs.json:ID"
    )
    parser.add_argument(
        "--task", choices=list(pretext.TASKS), default="cls", help="cls needs labels, seg masks"
    )
    parser.add_argument(
        "--recipe",
        choices=["evaluation", "sample"],
        default="evaluation",
        help="settings of Sec. 4 or 3",
    )
    data.add_arguments(parser.add_argument_group("data"))
    group = parser.add_argument_group("model (default: the table at the top of this script)")
    group.add_argument("--width", type=cli.even, help="channels of the first cells")
    group.add_argument(
        "--max_macs",
        type=at_least(0),
        metavar="MACS",
        help="take the largest --width within, e.g. 600e6",
    )
    group.add_argument("--layers", type=at_least(1, int), help="number of cells")
    group.add_argument(
        "--stem", choices=["cifar", "imagenet"], help="full or 1/8 resolution (default: by --size)"
    )
    group.add_argument(
        "--auxiliary",
        type=at_least(0),
        metavar="WEIGHT",
        help="of the auxiliary head's loss; 0: no head",
    )
    group.add_argument(
        "--drop_path",
        type=at_least(0, below=1),
        metavar="P",
        help="grows from 0 in the first epoch to P",
    )
    group = parser.add_argument_group(
        "optimiser: SGD, momentum 0.9, cosine by epoch (default: the table)"
    )
    group.add_argument("--epochs", type=at_least(1, int), help="passes over the training set")
    group.add_argument(
        "--batch_size", type=at_least(2, int), help="images per step, of all ranks together"
    )
    group.add_argument(
        "--accumulate",
        type=at_least(1, int),
        default=1,
        metavar="PARTS",
        help="of a batch, for less memory",
    )
    group.add_argument(
        "--lr", type=at_least(0), help="peak of the learning rate's cosine, which falls to 0"
    )
    group.add_argument(
        "--warmup_epochs", type=at_least(0, int), help="linear from a tenth of the learning rate"
    )
    group.add_argument("--weight_decay", type=at_least(0), help="of all weights")
    group.add_argument(
        "--nesterov", action=argparse.BooleanOptionalAction, help="Nesterov's momentum"
    )
    group.add_argument(
        "--grad_clip", type=at_least(0), help="largest norm of the gradient; 0: no clipping"
    )
    group.add_argument(
        "--label_smoothing", type=at_least(0, below=1), help="probability spread over all classes"
    )
    group.add_argument(
        "--cutout",
        type=at_least(0, int),
        metavar="PIXELS",
        help="side of a square that is zeroed; 0: none",
    )
    group.add_argument(
        "--precise_bn",
        type=at_least(0, int),
        metavar="IMAGES",
        help="re-estimate BN on so many; 0: do not",
    )
    group = parser.add_argument_group("run")
    utils.add_run_arguments(group)
    group.add_argument(
        "--compile",
        action="store_true",
        help="by torch.compile: some minutes at the start, faster steps",
    )
    return parser.parse_args(argv)


def main(args, load=data.load):
    """Returns what result.json holds. sample.py passes a `load` that keeps the data in memory."""
    # --- set-up
    device = utils.setup(args)
    genotype = genotypes.load_arch(args.arch)
    arch, space = genotypes.short_name(args.arch), genotypes.to_entry(genotype)["space"]
    if args.width and args.max_macs:
        raise InputError(f"--width {args.width}, --max_macs {args.max_macs:.4g}: give one of them")
    defaults = settings(args.recipe, args.dataset, args.task, space)
    defaults.pop("width" if args.max_macs else "max_macs" if args.width else None, None)
    utils.fill_defaults(args, defaults)
    utils.check_batch_size(args.batch_size, args.accumulate)
    if args.drop_path and space == "nasbench101":
        raise InputError(f"--drop_path {args.drop_path}: only networks of DARTS cells have it")
    if args.drop_path and args.compile:
        raise InputError(
            f"--compile: with --drop_path {args.drop_path}, which grows, each epoch would compile anew"
        )
    out = utils.open_run(args, f"train_{arch}_{args.dataset}_{args.task}_s{args.seed}")

    # --- data
    train, test = load(args.dataset, args.data, args.size, args.limit, args.workers)
    args.size = args.size or train.size
    args.stem = args.stem or ops.default_stem(args.size)
    if test is None:  # ImageNet-22K has no evaluation images
        halves = data.split_in_half(len(train), data.SPLIT_SEED)
        train, test = (train.subset(half) for half in halves)
        test = test.subset(data.random_subset(len(test), data.HELD_OUT_22K))
    task = pretext.make_task(args.task, train, args.size, args.stem, args.layers, device)
    split = data.split_hash(train, test)
    steps = len(train) // args.batch_size
    if not steps:
        raise InputError(
            f"--batch_size {args.batch_size}: the training set has {len(train)} images"
        )

    # --- model
    def build(auxiliary_classes=0, width=None):
        return model_eval.build_network(
            genotype, width or args.width, args.layers, args.stem, task, auxiliary_classes
        )

    if not args.width:
        smallest = 2 if space == "darts" else 8  # up to five vertices share the channels
        args.width = widest(
            lambda width: utils.count_macs(lambda: build(width=width), task),
            args.max_macs,
            smallest,
        )
    macs = utils.count_macs(build, task)
    with torch.device("meta"):
        params = utils.count_params(build())  # without the auxiliary head, as in the paper
    if args.auxiliary:
        model_eval.check_auxiliary(task, args.stem, args.layers)
    torch.manual_seed(args.seed)
    network = build(task.num_classes if args.auxiliary else 0).to(
        device, memory_format=torch.channels_last
    )
    if args.sync_bn:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    torch.manual_seed(args.seed + utils.rank())  # equal networks, different augmentation

    # --- optimiser
    optimizer = torch.optim.SGD(
        network.parameters(), args.lr, 0.9, weight_decay=args.weight_decay, nesterov=args.nesterov
    )
    autocast, scaler = utils.precision(device, args.amp)

    # --- resume
    identity = utils.identity_of(
        args, split=split, genotype=genotypes.to_text(genotype).replace("\n", " ")
    )
    finished = args.resume and (out / "result.json").exists()
    utils.check_same("whether --out holds a finished run", finished)
    if finished:
        result = cli.read_json(out / "result.json")
        utils.check_identity(out / "result.json", result.get("identity", {}), identity)
        print(f"finished: {out / 'result.json'}")
        return result
    if args.compile:
        network.compile()  # in place: the weights keep their names
    parts = {"network": network, "optimizer": optimizer, "scaler": scaler}
    state = utils.resume(args, out, device, identity, parts)
    epochs_done, steps_done, seconds, history, meters = (state[name] for name in utils.PROGRESS)

    # --- loop
    header = {"args": vars(args), **utils.environment(device), "split": split}
    log = utils.Log(out, header, epochs_done, steps_done)
    print(
        f"{arch}, {args.task} on {args.dataset}: {len(train)} images to train, {len(test)} to evaluate (split {split}); "
        f"{params / 1e6:.3f} M parameters, {macs / 1e6:.1f} M MACs; {out}"
    )
    for line in data.describe(train, test):
        print(line)
    progress = utils.Progress(log, args, steps, epochs_done * steps + steps_done)

    def save(*how_far):
        utils.save_run(out, device, identity, parts, how_far)

    for epoch in range(epochs_done + 1, args.epochs + 1):
        start = time.time()
        lr = utils.cosine_lr(args.lr, epoch - 1, args.epochs, args.warmup_epochs)
        optimizer.param_groups[0]["lr"] = lr
        network.drop_path = args.drop_path * (epoch - 1) / args.epochs
        network.train()
        meter = utils.Meter(task, *meters[0] if meters else ())
        part = args.batch_size // args.accumulate
        stream = data.batches(
            train, task.view, part, device, None, (args.seed, epoch), steps_done * args.accumulate
        )
        for step, batch in enumerate(zip(*[stream] * args.accumulate), start=steps_done + 1):
            optimizer.zero_grad()
            for images in batch:
                x, y = task.prepare(*images, train=True)
                x = pretext.cutout(x, args.cutout) if args.cutout else x
                with autocast:
                    outputs = network(x)
                    logits, *logits_aux = outputs if args.auxiliary else (outputs,)
                    loss = total = task.loss(logits, y, args.label_smoothing)
                    for aux in logits_aux:
                        total = total + args.auxiliary * task.loss(aux, y, args.label_smoothing)
                scaler.scale(total / args.accumulate).backward()
                meter.update(loss, logits, y)
            utils.average_gradients(network.parameters())
            if args.grad_clip:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(network.parameters(), args.grad_clip)
            scaler.step(optimizer)
            scaler.update()
            progress.step(epoch, step, lambda: utils.finite(meter.result(), epoch, step, args.task))
            stopping = utils.stop_requested()
            if stopping or (args.save_every and step % args.save_every == 0):
                save(epoch - 1, step, seconds + time.time() - start, history, [meter.state()])
            if stopping:
                utils.stop(out)

        if args.precise_bn:  # on full batches alone, as update_bn gives every batch the same weight
            network.drop_path = 0.0
            some = data.random_subset(len(train), max(args.precise_bn, part))
            some = data.batches(train, task.view, part, device, some, (args.seed, epoch))
            with autocast:
                update_bn((task.prepare(*batch, train=True)[0] for batch in some), network)
        result = utils.evaluate(
            network, task, data.batches(test, task.view, args.batch_size, device), autocast
        )
        result = utils.finite(result, epoch, steps, args.task)
        seconds += time.time() - start
        summary = {**{f"train_{name}": value for name, value in meter.result().items()}, **result}
        history.append({"epoch": epoch, "lr": lr, **summary})
        log.write(
            **history[-1], unreadable=utils.count_unreadable(train), seconds=round(seconds, 1)
        )
        print(f"epoch {epoch}/{args.epochs} done  " + cli.format_metrics(summary), flush=True)
        steps_done, meters = 0, None
        save(epoch, steps_done, seconds, history, meters)

    # --- result
    scores = [line[task.metric] for line in history]
    best = max(scores) if task.higher_is_better else min(scores)
    result = {
        "arch": arch,
        "space": space,
        "genotype": genotype._asdict(),
        "task": args.task,
        "dataset": args.dataset,
        "seed": args.seed,
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "best": best,
        "final": scores[-1],
        "params": params,
        "macs": macs,
        "seconds": round(seconds, 1),
        "unreadable": utils.count_unreadable(train),
        "epochs": history,
        "identity": identity,
        **header,
    }
    if not utils.rank():
        cli.write_json(out / "result.json", result)
    print(
        f"{task.metric}: best {best:.2f}, last {scores[-1]:.2f}, {cli.format_seconds(seconds)}; {out / 'result.json'}"
    )
    utils.finish()
    return result


if __name__ == "__main__":
    cli.run(main, parse_args)
