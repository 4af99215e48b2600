"""Train one architecture from scratch on one task and evaluate it after every epoch. Writes
result.json at the end.

    python train.py --arch runs/search_shapes_rot_s0/genotype.json   # a found cell, on a CPU
    python train.py --arch darts_v2 --dataset cifar10 --data data/   # as DARTS evaluates a cell
    torchrun --nproc_per_node=8 train.py --arch unnas_imagenet_rot --dataset imagenet --data in1k/
"""

import argparse
import bisect

import cli
import torch
from cli import InputError, at_least, format_seconds, table_row
from torch.nn.utils import clip_grad_norm_

import data
import genotypes
import model_eval
import ops
import pretext
import runs
import utils

# The paper's evaluation phase (on CIFAR-10 that of DARTS) and its sample-based experiments, whose
# settings also serve where it has none. shapes: minutes on two CPU cores. The first row that fits a
# run counts, `*` fits all (the last rows are for CIFAR-10 and folders). A size of None is that of
# the images; with max_macs the width is the largest within.
# fmt: off
BOTH = "imagenet imagenet22k"
PLAIN = None, 0, True, 0.0, 0.0, 0.0, 0, 0.0  # the last eight columns of the sample-based study
DEFAULTS = [
    ("recipe", "dataset", "task", "space",
     "size", "width", "layers", "epochs", "batch_size", "lr", "weight_decay", "precise_bn",
     "max_macs", "warmup_epochs", "nesterov", "grad_clip", "auxiliary", "drop_path", "cutout",
     "label_smoothing"),
    # size width cells epochs batch lr decay bn max_macs warmup nesterov clip aux drop cutout smooth
    ("*", "shapes", "*", "darts",
     None,    8,  4,    4,   25,   0.05, 3e-4, 0,  None, 0,  True, 5.0, 0.0, 0.0,  0, 0.0),
    ("*", "shapes", "*", "nasbench101",
     None,   16,  3,    4,   25,   0.05, 3e-4, 0,  None, 0,  True, 5.0, 0.0, 0.0,  0, 0.0),
    ("evaluation", "cifar10", "cls", "darts",
     None,   36, 20,  600,   96,  0.025, 3e-4, 0,  None, 0, False, 5.0, 0.4, 0.2, 16, 0.0),
    ("evaluation", "folder", "cls", "darts",  # an auxiliary head does not fit every size
     None,   36, 20,  600,   96,  0.025, 3e-4, 0,  None, 0, False, 5.0, 0.0, 0.2, 16, 0.0),
    ("evaluation", "imagenet", "cls", "darts",
      224, None, 14,  250, 1024,    0.5, 3e-5, 0, 600e6, 5,  True, 0.0, 0.4, 0.0,  0, 0.1),
    ("evaluation", "cityscapes", "seg", "darts", 769, 80, 12, 2700, 64, 0.1, 1e-4, 0, *PLAIN),
    ("*", BOTH,         "jig", "darts",        255,  32, 22,   5,  32, 0.0125, 5e-5, 1024, *PLAIN),
    ("*", BOTH,         "*",   "darts",        224,  32, 22,   5,  32, 0.0125, 5e-5, 1024, *PLAIN),
    ("*", BOTH,         "jig", "nasbench101",  255, 128, 12,  10,  32, 0.0125, 5e-5,    0, *PLAIN),
    ("*", BOTH,         "*",   "nasbench101",  224, 128, 12,  10,  32, 0.0125, 5e-5,    0, *PLAIN),
    ("*", "cityscapes", "*",   "darts",        321,  32, 22,   5,  32, 0.0125, 5e-5, 1024, *PLAIN),
    ("*", "cityscapes", "*",   "nasbench101",  321, 128, 12,  10,  32, 0.0125, 5e-5,    0, *PLAIN),
    ("*", "*",      "cls col", "darts",       None,  16, 20, 100, 128,    0.1, 5e-4, 1024, *PLAIN),
    ("*", "*",          "*",   "darts",       None,  16, 20, 100,  32,  0.025, 5e-4, 1024, *PLAIN),
    ("*", "*",      "cls col", "nasbench101", None, 128,  9, 100, 128,    0.1, 5e-4, 1024, *PLAIN),
    ("*", "*",          "*",   "nasbench101", None, 128,  9, 100,  32,  0.025, 5e-4, 1024, *PLAIN),
]
# fmt: on


def parse_args(argv=None):
    chosen = cli.peek(argv, dataset="shapes", task="cls", recipe="evaluation", arch=None)
    try:
        space = genotypes.to_entry(genotypes.load_arch(chosen.pop("arch") or "darts_v2"))["space"]
    except InputError:  # as main will say
        space = "darts"
    defaults = table_row(DEFAULTS, chosen["recipe"], chosen["dataset"], chosen["task"], space)
    text = "Train a network. The defaults are those of --recipe, --dataset, --task and --arch."
    parser = argparse.ArgumentParser(
        description=text, formatter_class=cli.HelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--arch", required=True, help="a name (darts_v2), a file, archs.json:ID or Genotype(...)")
    add("--task", choices=list(pretext.TASKS), help="cls needs labels, seg masks")
    add("--recipe", choices=["evaluation", "sample"], help="to evaluate a found cell or a sample")
    data.add_arguments(parser.add_argument_group("data"))
    group = parser.add_argument_group("model")
    width = group.add_mutually_exclusive_group()
    width.add_argument("--width", type=cli.even, help="channels of the first cells")
    width.add_argument("--max_macs", type=at_least(0), help="take the largest width within these")
    add = group.add_argument
    add("--layers", type=at_least(1, int), help="number of cells")
    add("--stem", choices=list(ops.STEMS), help="full or 1/8 resolution (default: by --size)")
    add("--auxiliary", type=at_least(0), help="weight of the auxiliary loss; 0: no head")
    add("--drop_path", type=at_least(0, below=1), help="probability, which grows from 0")
    add = parser.add_argument_group("optimiser: SGD, momentum 0.9, cosine by epoch").add_argument
    add("--epochs", type=at_least(1, int), help="passes over the training set")
    add("--batch_size", type=at_least(2, int), help="images per step, of all ranks together")
    add("--accumulate", type=at_least(1, int), default=1, help="parts of a batch, one at a time")
    add("--lr", type=at_least(0), help="peak of the cosine, which falls to 0")
    add("--warmup_epochs", type=at_least(0, int), help="linear from a tenth of the learning rate")
    add("--weight_decay", type=at_least(0), help="of all weights")
    add("--nesterov", action=argparse.BooleanOptionalAction, help="Nesterov's momentum")
    add("--grad_clip", type=at_least(0), help="largest norm of the gradient; 0: any")
    add("--label_smoothing", type=at_least(0, below=1), help="probability spread over all classes")
    add("--cutout", type=at_least(0, int), help="side of a zeroed square in pixels; 0: none")
    add("--precise_bn", type=at_least(0, int), help="images to re-estimate BN on; 0: none")
    group = parser.add_argument_group("run")
    runs.add_arguments(group)
    group.add_argument("--compile", action="store_true", help="slow start, faster steps")
    parser.set_defaults(**chosen, **defaults)
    args = parser.parse_args(argv)
    if args.width != defaults["width"]:  # given, so the budget of MACs does not count
        args.max_macs = None
    elif args.max_macs != defaults["max_macs"]:
        args.width = None
    return args


def main(args, load=data.load, distributed=True):
    """Returns what result.json holds. sample.py passes a `load` that keeps the data in memory, and
    trains without the other ranks."""
    # --- set-up
    device = utils.setup(args, distributed)
    genotype = genotypes.load_arch(args.arch)
    arch, space = genotypes.short_name(args.arch), genotypes.to_entry(genotype)["space"]
    if args.drop_path and space == "nasbench101":
        raise InputError(f"--drop_path {args.drop_path}: only networks of DARTS cells have it")
    if args.drop_path and args.compile:
        raise InputError(f"--compile: not with --drop_path {args.drop_path}, which grows")
    run = runs.Run(args, f"train_{arch}_{args.dataset}_{args.task}_s{args.seed}", device)

    # --- data
    train_set, test_set = load(args.dataset, args.data, args.size, args.limit, args.workers)
    args.size = args.size or train_set.size
    args.stem = args.stem or ops.default_stem(args.size)
    train_set, test_set = data.hold_out(train_set, test_set)
    task = pretext.make_task(args.task, train_set, args.size, args.stem, args.layers, device)
    utils.check_batch_size(args.batch_size, len(train_set), args.accumulate)
    part_size = args.batch_size // args.accumulate

    # --- model
    def build(width, **more):
        shape = width, args.layers, args.stem
        return model_eval.build_network(genotype, *shape, **task.network_args, **more)

    def cost_at(width):
        return utils.count(lambda: build(width), task.input_shape)

    if args.width is None:
        smallest = 2 if space == "darts" else 8  # up to five vertices share the channels
        args.width = largest_width(lambda width: cost_at(width)[1], args.max_macs, smallest)
    params, macs = cost_at(args.width)  # without the auxiliary head, as in the paper
    if args.auxiliary:
        if not task.classifies_inputs:
            raise InputError("--auxiliary: only for tasks with a class for each input, cls and rot")
        model_eval.check_auxiliary(task.input_size, args.stem, args.layers, task.reductions)
    torch.manual_seed(args.seed)
    network = build(args.width, auxiliary_classes=task.num_classes if args.auxiliary else 0)
    network = utils.place(network, device, args.sync_bn)
    torch.manual_seed(args.seed + utils.rank())  # equal networks, different augmentation

    # --- optimiser
    how = dict(momentum=0.9, weight_decay=args.weight_decay, nesterov=args.nesterov)
    optimizer = torch.optim.SGD(network.parameters(), args.lr, **how)
    autocast, scaler = utils.precision(device, args.amp)

    # --- loop
    cell = genotypes.to_text(genotype).replace("\n", " ")
    run.identify(split=data.split_hash(train_set, test_set), genotype=cell)
    if result := run.finished():
        return result
    meter = utils.Meter(task)
    parts = {"network": network, "optimizer": optimizer, "scaler": scaler}
    run.start(parts, {"train": meter}, steps=len(train_set) // args.batch_size)
    images = f"{len(train_set)} images to train, {len(test_set)} to evaluate"
    size = f"{params / 1e6:.3f} M parameters, {macs / 1e6:.1f} M MACs"
    run.print(f"{arch}, {args.task} on {args.dataset}: {images}; {size}")
    run.print(*data.describe(train_set))
    if device.type == "cuda" and not args.deterministic:
        targets = part_size * task.targets_per_image
        run.print(utils.choose_layout(network, autocast, targets, task.input_shape))
    if args.compile:
        network.compile()  # in place: the weights keep their names

    for epoch in run.epochs():
        lr = utils.cosine_lr(args.lr, epoch - 1, args.epochs, args.warmup_epochs)
        optimizer.param_groups[0]["lr"] = lr
        network.drop_path = args.drop_path * (epoch - 1) / args.epochs
        network.train()
        skip, seed = run.steps_done * args.accumulate, (args.seed, epoch)
        batches = data.batches(train_set, task.view, part_size, device, None, seed, skip)
        for parts_of_batch in zip(*[batches] * args.accumulate):
            optimizer.zero_grad()
            for part in parts_of_batch:
                x, y = task.prepare(*part, train=True)
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
                clip_grad_norm_(network.parameters(), args.grad_clip)
            scaler.step(optimizer)
            scaler.update()
            run.after_step()

        run.save()  # what may be wrong with an evaluation image must not cost the epoch
        if args.precise_bn:
            network.drop_path = 0.0
            some = data.random_subset(len(train_set), max(args.precise_bn, part_size))
            batches = data.batches(train_set, task.view, part_size, device, some, seed)
            with autocast:
                utils.precise_bn(network, (task.prepare(*b, train=True)[0] for b in batches))
        batches = data.batches(test_set, task.view, args.batch_size, device)
        result = run.check_finite(utils.evaluate(network, task, batches, autocast))
        run.after_epoch(lr, result, unreadable=utils.count_distinct(train_set.unreadable))

    # --- result
    scores = [line[task.metric] for line in run.history]
    best = max(scores) if task.higher_is_better else min(scores)
    names = task.classes if task.targets else []  # of the data set
    result = {"arch": arch, "space": space, "genotype": genotype._asdict()}
    result |= {"task": args.task, "dataset": args.dataset, "seed": args.seed}
    result |= {"metric": task.metric, "higher_is_better": task.higher_is_better}
    result |= {"best": best, "final": scores[-1], "params": params, "macs": macs}
    unreadable = utils.count_distinct(train_set.unreadable)
    result |= {"seconds": round(run.seconds, 1), "unreadable": unreadable}
    normal = {"mean": train_set.mean, "std": train_set.std, "whites": train_set.whites}
    result |= {"images": {"classes": names, **normal}}
    result |= {"epochs": run.history, "identity": run.identity, **run.header}
    run.write_json("result.json", result)
    found = f"best {best:.2f}, last {scores[-1]:.2f}, {format_seconds(run.seconds)}"
    run.print(f"{task.metric}: {found}; {run.out / 'result.json'}")
    run.finish()
    return result


def largest_width(macs_at, max_macs, smallest=2):
    """The largest even width whose network needs at most that many MACs, which grow with it."""
    widths = range(smallest, 2048, 2)
    fitting = bisect.bisect_right(widths, max_macs, key=macs_at)
    if not fitting:
        least = f"a network of width {smallest} needs {macs_at(smallest):.4g}"
        raise InputError(f"--max_macs {max_macs:.4g}: {least}")
    return widths[fitting - 1]


if __name__ == "__main__":
    cli.run(main, parse_args)
