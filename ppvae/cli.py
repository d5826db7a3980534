"""The command line: recipes with typed flags."""

import platform
import sys
from pathlib import Path

import pyro
import torch
import tyro

from ppvae.data import digits
from ppvae.recipes import five_guides
from ppvae.report import format_table, writable_folder, write_report

__all__ = ["compare", "main"]


def compare(
    *,
    epochs: int = 300,
    latent_dim: int = 8,
    hidden: int = 256,
    num_particles: int = 1000,
    seed: int = 0,
    device: str = "auto",
    out: Path = Path("report"),
) -> None:
    """Train one VAE on scikit-learn's digits with five guides, and compare them.

    Args:
        epochs: How many times to go through the data, per guide.
        latent_dim: The size of the latent.
        hidden: The width of the hidden layer in encoder and decoder.
        num_particles: The number of draws per test datum that the verdict rests on, at least 25.
        seed: Of weights, draws and the split.
        device: "auto", "cpu" or "cuda".
        out: The folder to write comparison.csv and index.html to.
    """
    if num_particles < 25:
        raise ValueError(f"num_particles must be at least 25 for Pareto k, but is {num_particles}")
    writable_folder(out)  # before the work, not after it
    split = digits(seed=seed)
    svis, interrupted = {}, False
    options = {"latent_dim": latent_dim, "hidden": hidden, "epochs": epochs, "seed": seed}
    try:
        for name, svi in five_guides(split, device=device, **options):
            svis[name] = svi
    except KeyboardInterrupt:
        if not svis:
            raise
        interrupted = True
        print(f"\ninterrupted: reporting on what is trained, {', '.join(svis)}", file=sys.stderr)
    where = next(iter(svis.values())).device
    table = write_report(
        svis,
        split.test.to(where),
        out,
        labels=split.test_labels,
        image=split.image,
        num_particles=num_particles,
        title="Five guides on one model",
        facts={
            "data": f"scikit-learn digits, {len(split.train)} to train and {len(split.test)} to test",
            **options,
            "draws": num_particles,
            "device": where,
            "torch": torch.__version__,
            "pyro": pyro.__version__,
            "python": platform.python_version(),
        },
    )
    print(f"\n{format_table(table)}\n\nThe report is in {out.resolve() / 'index.html'}")
    if interrupted:
        raise KeyboardInterrupt


def main() -> None:
    """Run a subcommand: 2 for what the user can mend, 130 when interrupted."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"compare": compare}, prog="ppvae", description=__doc__
        )
    except (ValueError, OSError) as error:
        sys.exit(_complain(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _complain(error: Exception) -> int:
    print(f"ppvae: {error}", file=sys.stderr)
    return 2
