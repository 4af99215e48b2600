"""What it costs that ranks average gradients in one message after the backward pass: the share of a
step of a search. docs/scale.md has the numbers.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 tests/averaging.py
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

import data
import model_search
import pretext
import search
import utils


def main():
    args = search.parse_args(["--device", "cuda" if torch.cuda.is_available() else "cpu"])
    device = utils.setup(args)
    train_set, _ = data.load("cifar10" if len(sys.argv) > 1 else "shapes", *sys.argv[1:])
    task = pretext.make_task("cls", train_set, 32, "cifar", 8, device)
    supernet = model_search.Supernet(16, 8, "cifar", **task.network_args)
    supernet, alphas = utils.place(supernet, device), model_search.init_alphas(device)
    batches = data.batches(train_set, task.view, 16 * utils.world_size(), device, None, 0)

    steps, shares = [], []
    for _, batch in zip(range(12), batches):
        x, y = task.prepare(*batch, train=True)
        start = time.perf_counter()
        for wanted in ([alphas], list(supernet.parameters())):  # alpha step, weight step
            supernet.requires_grad_(wanted[0] is not alphas)
            logits = supernet(x, alphas if wanted[0] is alphas else alphas.detach())
            task.loss(logits, y).backward()
        torch.distributed.barrier()  # waiting for the slower rank is no message
        before = time.perf_counter()
        utils.average_gradients([alphas])
        utils.average_gradients(supernet.parameters())
        end = time.perf_counter()
        steps.append(end - start)
        shares.append(end - before)
    size = sum(p.numel() for p in supernet.parameters()) * 4 / 1e6
    if not utils.rank():
        step, message = (1e3 * statistics.median(times[2:]) for times in (steps, shares))
        share = f"{message:.1f} of {step:.0f} ms, {100 * message / step:.1f}%"
        print(f"{size:.2f} MB of gradients, {utils.world_size()} ranks: {share}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
