"""A comparison of guides as a folder: a table to compute with, a page to read."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ppvae import diagnostics, plots
from ppvae.protocols import Batch, batch_size, rows_of
from ppvae.training import SVI, History

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from torch import Tensor

__all__ = ["COLUMNS", "format_table", "writable_folder", "write_report"]

# Column: (how to print it, what it means), in the order of the table.
COLUMNS = {
    "elbo": ("{:.2f}", "evidence lower bound on the test data, nats per datum; higher is better"),
    "elbo_se": ("{:.2f}", "its error over the choice of test data"),
    "elbo_difference": ("{:.2f}", "its distance to the best row, on the same data"),
    "elbo_difference_se": ("{:.2f}", "the error of that distance, over data and seeds"),
    "evidence": ("{:.2f}", "importance-weighted estimate of ln p(x), nats per datum"),
    "evidence_se": ("{:.3f}", "its Monte Carlo error: what more draws would take away"),
    "evidence_data_se": ("{:.2f}", "its error over the choice of test data"),
    "evidence_difference": ("{:.2f}", "its distance to the best row, on the same data"),
    "evidence_difference_se": ("{:.2f}", "the error of that distance, over data and seeds"),
    "best_rank": ("{:.0f}", "the best place by evidence that data and seeds leave open"),
    "worst_rank": ("{:.0f}", "the worst one"),
    "k_bad": ("{:.1%}", "share of test data with Pareto k > 0.7, whose weights cannot be trusted"),
    "ess": ("{:.0f}", "median effective number of draws per datum"),
    "kl": ("{:.2f}", "mean KL(q(z|x) || p(z)), nats: mutual information + KL of the aggregate"),
    "mutual_information": ("{:.2f}", "I_q(x; z), nats; at most ln N"),
    "active_units": ("{:.1f}", "latent dimensions whose posterior mean varies by more than 0.01"),
    "elbo_seed_sd": ("{:.2f}", "the standard deviation of the ELBO over seeds"),
    "evidence_seed_sd": ("{:.2f}", "the standard deviation of the evidence over seeds"),
    "seconds": ("{:.1f}", "training time, validation included"),
    "parameters": ("{:,.0f}", "parameters of the guide"),
}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 68rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #222; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; }
figure { margin: 1rem 0; } img { max-width: 100%; }
figcaption, .facts { color: #555; font-size: .9rem; }
"""


def write_report(
    svis: Mapping[str, SVI | Sequence[SVI]],
    batch: Batch,
    out: str | Path,
    *,
    labels: "Tensor | None" = None,
    image: tuple[int, ...] | None = None,
    num_particles: int = 1000,
    most_data: int = 1000,
    title: str = "Guides compared",
    facts: Mapping[str, object] | None = None,
) -> "pd.DataFrame":
    """Judge trained pairs on held-out data; write `comparison.csv` and `index.html`.

    The page holds its figures itself and needs nothing else: training curves, reconstructions and
    prior samples, Pareto k per datum, KL per latent dimension, a latent map colored by label, and
    the aggregate posterior against the prior.

    Args:
        svis: Trained pairs by name, or lists of them, one for each seed: the table is of all, and
            the figures are of the first.
        batch: Held-out data x, (N, ...): images, which are drawn, or sentences, or modalities.
        out: The folder; made if need be, and its two files replaced.
        labels: (N,) integers, for the latent map; without them it is left out.
        image: The shape (C, H, W) of one datum.
        num_particles: The number of draws per datum.
        most_data: As in `diagnostics.judge`; also how many data the latent pictures show.
        title: Of the page.
        facts: What was done, by name, printed under the title.

    Returns:
        The table, a row per pair.

    Raises:
        OSError: If the folder cannot be written, naming it.
        WeightlessError: If a guide has no density.

    Example:
        >>> write_report({}, torch.zeros(3, 4), "unused")
        Traceback (most recent call last):
        ...
        ValueError: there is nothing to report: no pair was trained
    """
    if not svis:
        raise ValueError("there is nothing to report: no pair was trained")
    folder = writable_folder(out)
    runs = {name: some if isinstance(some, Sequence) else [some] for name, some in svis.items()}
    options = {"num_particles": num_particles, "most_data": most_data}
    verdicts = {
        name: [diagnostics.judge(svi.model, svi.guide, batch, **options) for svi in some]
        for name, some in runs.items()
    }
    table = diagnostics.tabulate(verdicts)
    table["seconds"] = [
        sum(record["seconds"] for svi in some for record in svi.records) / len(some)
        for some in runs.values()
    ]
    table = table[[name for name in COLUMNS if name in table]]
    figures = _figures(
        {name: some[0] for name, some in runs.items()},
        {name: some[0] for name, some in verdicts.items()},
        rows_of(batch, 0, most_data),
        labels,
        image,
    )
    table.to_csv(folder / "comparison.csv")
    page = _page(title, facts or {}, table, figures)
    (folder / "index.html").write_text(page, encoding="utf-8")
    return table


def format_table(table: "pd.DataFrame") -> str:
    """Return the table as text, each column in its own format.

    Example:
        >>> import pandas as pd
        >>> print(format_table(pd.DataFrame({"elbo": [-18.123]}, index=["normal"])))
                  elbo
        normal  -18.12
    """
    return _formatted(table).to_string()


def writable_folder(out: str | Path) -> Path:
    """Return the folder, made if need be, after a trial write.

    Raises:
        OSError: If it cannot be written, naming it and the mend.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".trial"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write to the folder {folder}: {error}; choose another --out"
        ) from error
    return folder


def _figures(
    svis: Mapping[str, SVI],
    verdicts: Mapping[str, diagnostics.Verdict],
    batch: Batch,
    labels: "Tensor | None",
    image: tuple[int, ...] | None,
) -> dict[str, "Figure"]:
    """Return the figures by caption."""
    pairs = {name: (svi.model, svi.guide) for name, svi in svis.items()}
    models = {name: svi.model for name, svi in svis.items()}
    guides = {name: svi.guide for name, svi in svis.items()}
    tails = {name: verdict.tail for name, verdict in verdicts.items()}
    splits = {name: v.split for name, v in verdicts.items() if v.split is not None}
    divergences = {name: verdict.kl_per_dimension for name, verdict in verdicts.items()}
    figures = {
        "Training: the ELBO of held-out data after each epoch, one draw per datum.": (
            plots.training_curves({name: History(svi.records) for name, svi in svis.items()})
        )
    }
    if isinstance(batch, torch.Tensor) and batch.is_floating_point():
        figures |= {
            "Test data, and their reconstructions by each pair: the likelihood's means at one "
            "draw of the latent.": plots.reconstructions(pairs, batch, image=image),
            "Prior samples of each model: the likelihood's means at draws from the prior.": (
                plots.prior_samples(models, batch, image=image)
            ),
        }
    figures |= {
        "Pareto k of every test datum. Above 0.7 (solid) no practicable number of draws helps; "
        "above the dashed line this number does not suffice.": plots.pareto_k(tails),
        "KL of each latent dimension: exact for a factorized guide, else that of Normal marginals "
        "with the posterior's means and variances, a lower bound.": plots.kl_per_dimension(
            divergences
        ),
    }
    if labels is not None:
        caption = "Posterior means in the plane of their first principal components, by label."
        figures[caption] = plots.latent_map(guides, batch, labels[: batch_size(batch)])
    caption = (
        "The aggregate posterior over the prior (gray). Where they part, prior samples come from "
        "places that the decoder has not seen."
    )
    return figures | {caption: plots.aggregate_posterior(splits, models, batch)}


def _formatted(table: "pd.DataFrame") -> "pd.DataFrame":
    text = table.astype(object)
    for name in table:
        text[name] = table[name].map(COLUMNS[name][0].format)
    return text


def _page(
    title: str, facts: Mapping[str, object], table: "pd.DataFrame", figures: Mapping[str, "Figure"]
) -> str:
    """Return a page that holds everything it shows."""
    stated = ", ".join(f"{html.escape(k)}: {html.escape(str(v))}" for k, v in facts.items())
    meanings = "".join(f"<dt>{name}</dt><dd>{COLUMNS[name][1]}</dd>" for name in table)
    shown = "".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{_png(figure)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, figure in figures.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f'<h1>{html.escape(title)}</h1><p class="facts">{stated}</p>'
        f'<div class="scroll">{_formatted(table).to_html(border=0)}</div>'
        f"<h2>What the columns say</h2><dl>{meanings}</dl><h2>Figures</h2>{shown}</html>\n"
    )


def _png(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()
