"""The tables of defaults against the paper's settings, and what --help shows of them."""

import cli
import pytest

import genotypes
import search
import train

NASBENCH = {
    "space": "nasbench101",
    "matrix": [[0, 1, 0], [0, 0, 1], [0, 0, 0]],
    "ops": ["input", "conv3x3-bn-relu", "output"],
}
# data set and task: size, width, cells, epochs, alphas start, batch, lr, alpha lr, weight decay
SEARCH = {
    "imagenet cls": (224, 16, 8, 2, 1, 64, 0.1, 3e-4, 3e-5),
    "imagenet col": (224, 16, 8, 2, 1, 64, 0.1, 3e-4, 3e-5),
    "imagenet rot": (224, 16, 8, 2, 1, 32, 0.05, 1.5e-4, 3e-5),
    "imagenet jig": (255, 16, 8, 2, 1, 32, 0.05, 1.5e-4, 3e-5),
    "imagenet22k cls": (224, 16, 8, 1, 0, 256, 0.4, 1.2e-3, 3e-5),
    "imagenet22k col": (224, 16, 8, 1, 0, 256, 0.4, 1.2e-3, 3e-5),
    "imagenet22k rot": (224, 16, 8, 1, 0, 128, 0.2, 6e-4, 3e-5),
    "imagenet22k jig": (255, 16, 8, 1, 0, 128, 0.2, 6e-4, 3e-5),
    "cityscapes seg": (321, 16, 12, 400, 0, 32, 0.1, 3e-4, 3e-4),
    "cityscapes jig": (321, 16, 12, 400, 0, 32, 0.1, 3e-4, 3e-4),
    "cityscapes rot": (321, 16, 12, 400, 0, 16, 0.05, 1.5e-4, 3e-4),
    "cityscapes col": (321, 16, 12, 400, 0, 16, 0.05, 1.5e-4, 3e-4),
    **{
        f"{dataset} {task}": (None, 16, 8, 50, 0, 64, 0.025, 3e-4, 3e-4)
        for dataset in ("cifar10", "folder")
        for task in ("cls", "rot", "col", "jig")
    },
}


@pytest.mark.parametrize("run", list(SEARCH))
def test_search(run):
    dataset, task = run.split()
    args = search.parse_args(["--dataset", dataset, "--task", task])
    names = "size width layers epochs alpha_start batch_size lr alpha_lr weight_decay"
    assert tuple(getattr(args, name) for name in names.split()) == SEARCH[run]
    assert args.grad_clip == 5 and args.limit is None
    assert args.save_every == (2000 if dataset == "imagenet22k" else 0)


@pytest.mark.parametrize("task", ["cls", "rot", "col", "jig"])
def test_partial_channels(task):
    names = "partial batch_size lr alpha_lr weight_decay epochs alpha_start images width layers"
    for dataset, size, expected in (
        ("cifar10", None, (4, 256, 0.1, 6e-4, 3e-4, 50, 15, None, 16, 8)),
        ("imagenet", 224, (2, 1024, 0.5, 6e-3, 3e-4, 50, 35, [0.1, 0.025], 16, 8)),
    ):
        argv = ["--dataset", dataset, "--task", task, "--partial", str(expected[0])]
        args = search.parse_args(argv)
        assert values(args, names) == expected
        assert args.size == (255 if (dataset, task) == ("imagenet", "jig") else size)
        args = search.parse_args([*argv[:-1], "1"])
        assert args == search.parse_args(argv[:-2]) and args.partial == 1 and args.images is None


def train_args(tmp_path, recipe, dataset, task, space, *more):
    arch = "darts_v2"
    if space == "nasbench101":
        arch = str(tmp_path / "cell.json")
        cli.write_json(arch, NASBENCH)
    argv = ["--recipe", recipe, "--dataset", dataset, "--task", task, "--arch", arch, *more]
    return train.parse_args(argv)


def values(args, names):
    return tuple(getattr(args, name) for name in names.split())


@pytest.mark.parametrize("task", ["cls", "col", "rot", "jig"])
@pytest.mark.parametrize("dataset", ["cifar10", "imagenet"])
@pytest.mark.parametrize("space", ["darts", "nasbench101"])
def test_sample_based_study(tmp_path, space, dataset, task):
    args = train_args(tmp_path, "sample", dataset, task, space)
    expected = {  # width, cells, epochs, weight decay, images of precise BN
        ("darts", "cifar10"): (16, 20, 100, 5e-4, 1024),
        ("darts", "imagenet"): (32, 22, 5, 5e-5, 1024),
        ("nasbench101", "cifar10"): (128, 9, 100, 5e-4, 1024),
        ("nasbench101", "imagenet"): (128, 12, 10, 5e-5, 0),
    }[space, dataset]
    assert values(args, "width layers epochs weight_decay precise_bn") == expected
    if dataset == "imagenet":
        expected = (255 if task == "jig" else 224, 32, 0.0125)
    else:
        expected = (None, 128, 0.1) if task in ("cls", "col") else (None, 32, 0.025)
    assert values(args, "size batch_size lr") == expected
    off = values(args, "warmup_epochs auxiliary drop_path cutout label_smoothing grad_clip")
    assert args.nesterov and not any(off)


def test_evaluation_phase(tmp_path):
    args = train_args(tmp_path, "evaluation", "imagenet", "cls", "darts")
    names = "width max_macs layers epochs batch_size lr warmup_epochs weight_decay label_smoothing"
    assert values(args, names) == (None, 600e6, 14, 250, 1024, 0.5, 5, 3e-5, 0.1)
    assert values(args, "nesterov auxiliary drop_path size") == (True, 0.4, 0, 224)
    args = train_args(tmp_path, "evaluation", "cityscapes", "seg", "darts")
    names = "layers epochs batch_size lr weight_decay size auxiliary drop_path"
    assert values(args, names) == (12, 2700, 64, 0.1, 1e-4, 769, 0, 0)
    args = train_args(tmp_path, "evaluation", "cifar10", "cls", "darts")
    names = "width layers epochs batch_size lr weight_decay auxiliary cutout drop_path nesterov"
    assert values(args, names) == (36, 20, 600, 96, 0.025, 3e-4, 0.4, 16, 0.2, False)


def test_width_and_budget_replace_each_other(tmp_path):
    imagenet = (tmp_path, "evaluation", "imagenet", "cls", "darts")
    assert values(train_args(*imagenet, "--width", "48"), "width max_macs") == (48, None)
    assert values(train_args(*imagenet, "--max_macs", "3e8"), "width max_macs") == (None, 3e8)
    cifar10 = (tmp_path, "evaluation", "cifar10", "cls", "darts")
    assert values(train_args(*cifar10, "--max_macs", "3e8"), "width max_macs") == (None, 3e8)
    assert values(train_args(*cifar10), "width max_macs") == (36, None)


def test_all_rows_are_complete_and_can_be_reached():
    for table, keys in ((search.DEFAULTS, 3), (train.DEFAULTS, 4)):
        columns, *rows = table
        assert all(len(row) == len(columns) for row in rows)
        assert len({row[:keys] for row in rows}) == len(rows)
    every = [
        (recipe, dataset, task, space)
        for recipe in ("evaluation", "sample")
        for dataset in ("shapes", "cifar10", "folder", "imagenet", "cityscapes", "own")
        for task in ("cls", "rot", "col", "jig", "seg", "own")
        for space in ("darts", "nasbench101")
    ]
    found = {tuple(cli.table_row(train.DEFAULTS, *run).values()) for run in every}
    assert found == {row[4:] for row in train.DEFAULTS[1:]}


@pytest.mark.parametrize(
    "script, argv, shown",
    [
        (train, ["--dataset", "imagenet", "--task", "cls"], ["1024", "600000000.0", "250", "0.5"]),
        (train, ["--dataset=cifar10", "--arch", "darts_v2"], ["96", "36", "600", "0.025"]),
        (search, ["--dataset", "imagenet", "--task", "rot"], ["0.00015", "224", "32", "rot"]),
        (search, [], ["480", "0.01", "shapes"]),
    ],
)
def test_help_shows_the_values_of_this_run(capsys, script, argv, shown):
    with pytest.raises(SystemExit):
        script.parse_args([*argv, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"(default: {value})" in text for value in shown)
    assert "(default: None)" not in text


def test_space_of_the_arch_counts(tmp_path):
    path = tmp_path / "archs.json"
    cli.write_json(path, [{"id": "a", **NASBENCH}])
    assert train.parse_args(["--arch", f"{path}:a"]).width == 16
    assert train.parse_args(["--arch", "darts_v2"]).width == 8
    assert "darts_v2" in genotypes.CELLS
