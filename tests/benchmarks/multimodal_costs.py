"""What a step costs as modalities are added: milliseconds, memory, and encoder calls.

    python tests/benchmarks/multimodal_costs.py --out runs/multimodal_costs

2 to 10 modalities of 100 numbers each, encoders and decoders of one hidden layer of 128, 16
latents, pooling of width 128, batches of 128, Adam, one thread. "ELBO" is the ordinary one;
"masked" draws one subset per datum and step, "MVAE" sums over M + 2 subsets. Calls are of all
encoders in one step: M whatever the number of subsets. Milliseconds are the median of `repeats`
steps, in processor time on a CPU, which other work on the machine inflates less than wall-clock
time, and in wall-clock time on a GPU. Memory is what one step holds at its peak beyond what was
there before it, by torch's own count: of all CPU allocations, or of CUDA's allocator on a GPU.
"""

import csv
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import pyro
import torch
import tyro
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ppvae import SVI, guides, resolve_device
from ppvae.aggregation import MoE, MoPoE, PoE, SelfAttention, SumPooling
from ppvae.models import Multimodal
from ppvae.networks import MLP
from ppvae.objectives import MaskedELBO, mvae_subsets

LATENTS, WIDTH, SIZE, BATCH = 16, 128, 100, 128
AGGREGATIONS = {
    "PoE": PoE,
    "MoE": MoE,
    "MoPoE": MoPoE,
    "SumPooling": partial(SumPooling, width=WIDTH),
    "SelfAttention": partial(SelfAttention, width=WIDTH),
}
LOSSES = {
    "ELBO": Trace_ELBO,
    "masked": MaskedELBO,
    "MVAE": partial(MaskedELBO, mvae_subsets(), "marginal"),
}


def make(aggregation: str, loss: ELBO, count: int, device: torch.device) -> tuple[SVI, dict]:
    """Return a step and a batch of so many modalities."""
    names = [f"x_{m + 1}" for m in range(count)]
    model = Multimodal({name: MLP(LATENTS, WIDTH, SIZE) for name in names}, LATENTS)
    guide = guides.Multimodal(
        {name: MLP(SIZE, WIDTH) for name in names}, AGGREGATIONS[aggregation](LATENTS), LATENTS
    )
    optim = partial(torch.optim.Adam, lr=1e-4)
    batch = {name: torch.randn(BATCH, SIZE, device=device) for name in names}
    return SVI(model.to(device), guide.to(device), optim, loss), batch


def measure(
    aggregation: str, loss: str, count: int, repeats: int, device: torch.device
) -> dict[str, object]:
    """Return one row of the table."""
    pyro.set_rng_seed(0)
    svi, batch = make(aggregation, LOSSES[loss](), count, device)
    for _ in range(3):
        svi.step(batch)
    calls: list[nn.Module] = []
    hooks = [
        encoder.register_forward_hook(lambda module, *_: calls.append(module))
        for encoder in svi.guide.encoders.values()
    ]
    svi.step(batch)
    for hook in hooks:
        hook.remove()
    times = []
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(repeats):
        start = clock()
        svi.step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return {
        "aggregation": aggregation,
        "loss": loss,
        "modalities": count,
        "milliseconds": round(1000 * statistics.median(times), 2),
        "memory_mb": round(_peak(svi, batch, device) / 2**20, 2),
        "encoder_calls": len(calls),
    }


def _peak(svi: SVI, batch: dict[str, Tensor], device: torch.device) -> int:
    """Return the most bytes that a step holds beyond what was held before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        svi.step(batch)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        svi.step(batch)
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def main(
    out: Path = Path("runs/multimodal_costs"),
    counts: tuple[int, ...] = (2, 4, 6, 8, 10),
    repeats: int = 30,
    device: str = "cpu",
) -> None:
    """Measure, and write a table and a figure.

    Args:
        out: Where to write.
        counts: The numbers of modalities.
        repeats: How many steps are timed.
        device: Where to measure.
    """
    torch.set_num_threads(1)
    where = resolve_device(device)
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        measure(aggregation, loss, count, repeats, where)
        for aggregation in AGGREGATIONS
        for loss in LOSSES
        for count in counts
    ]
    with (out / "costs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    text = table(rows)
    (out / "table.md").write_text(text)
    _draw(rows, out)
    print(text)


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown: milliseconds, and memory at the most modalities."""
    counts = sorted({row["modalities"] for row in rows})
    columns = ["aggregation", "loss", *(f"M = {count}, ms" for count in counts)]
    columns += [f"MB at {counts[0]}", f"MB at {counts[-1]}", f"encoder calls at {counts[-1]}"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for aggregation in AGGREGATIONS:
        for loss in LOSSES:
            mine = [r for r in rows if (r["aggregation"], r["loss"]) == (aggregation, loss)]
            cells = [aggregation, loss, *(f"{row['milliseconds']:.1f}" for row in mine)]
            cells += [f"{mine[0]['memory_mb']:.1f}", f"{mine[-1]['memory_mb']:.1f}"]
            lines.append(f"| {' | '.join([*cells, str(mine[-1]['encoder_calls'])])} |")
    versions = (
        f"torch {torch.__version__}, pyro {pyro.__version__}, python {platform.python_version()}"
    )
    return "\n".join([*lines, "", versions, ""])


def _draw(rows: list[dict], out: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    styles = dict(zip(LOSSES, (":", "-", "--"), strict=True))
    for color, aggregation in enumerate(AGGREGATIONS):
        for loss, style in styles.items():
            mine = [r for r in rows if (r["aggregation"], r["loss"]) == (aggregation, loss)]
            x = [row["modalities"] for row in mine]
            for ax, column in zip(axes, ("milliseconds", "memory_mb"), strict=True):
                label = f"{aggregation}, {loss}" if loss == "masked" else None
                ax.plot(x, [r[column] for r in mine], style, color=f"C{color}", label=label)
    axes[0].set(xlabel="modalities", ylabel="milliseconds a step", yscale="log")
    axes[1].set(xlabel="modalities", ylabel="MB held by a step", yscale="log")
    axes[0].legend(fontsize=7, title="dotted: ELBO, dashed: MVAE", title_fontsize=7)
    figure.tight_layout()
    figure.savefig(out / "costs.png", dpi=120)


if __name__ == "__main__":
    tyro.cli(main)
