"""The command line and what it writes: the table, the page, the errors."""

import csv
import re
from itertools import islice

import pytest
import torch

from ppvae import cli, report
from ppvae.data import digits
from ppvae.recipes import FIVE_GUIDES, five_guides


def run(monkeypatch, *arguments):
    """Run the command as a shell would, and return its exit code."""
    monkeypatch.setattr("sys.argv", ["ppvae", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report of two epochs per guide, with what was printed."""
    out = tmp_path_factory.mktemp("out") / "deep" / "report"
    svis = dict(five_guides(digits(), epochs=2, hidden=32, device="cpu", progress=False))
    split = digits()
    table = report.write_report(
        svis, split.test[:60], out, labels=split.test_labels, image=split.image, num_particles=50
    )
    return out, table, svis


def test_table_has_a_row_per_guide_and_every_column(written):
    out, table, _ = written
    assert list(table.index) == list(FIVE_GUIDES)
    assert list(table.columns) == [name for name in report.COLUMNS if "seed" not in name]
    assert table.notna().all(axis=None)
    assert (table["evidence"] >= table["elbo"]).all()
    with (out / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["elbo"]) for row in rows] == pytest.approx(list(table["elbo"]))


def test_page_holds_everything_it_shows(written):
    page = (written[0] / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 7
    for name in (*FIVE_GUIDES, *written[1].columns):
        assert name in page


def test_every_guide_starts_from_the_same_decoder():
    split = digits()
    first = {}
    for name, svi in five_guides(split, epochs=0, hidden=8, device="cpu", progress=False):
        first[name] = svi.model.state_dict()
    reference = first.pop("normal")
    assert all(torch.equal(state[n], reference[n]) for state in first.values() for n in reference)


def test_command_compares_and_says_where(monkeypatch, tmp_path, capsys):
    options = ("--epochs", 1, "--hidden", 16, "--num-particles", 30, "--out", tmp_path / "r")
    assert run(monkeypatch, "compare", *options, "--device", "cpu") == 0
    shown = capsys.readouterr().out
    assert str(tmp_path / "r" / "index.html") in shown
    assert all(name in shown for name in FIVE_GUIDES)


def test_command_compares_several_seeds(monkeypatch, tmp_path, capsys):
    """Each guide once for each, in one table: what they make of the ranking."""
    monkeypatch.setattr(cli, "five_guides", lambda *a, **k: islice(five_guides(*a, **k), 2))
    options = ("--epochs", 1, "--hidden", 8, "--num-particles", 30, "--device", "cpu")
    assert run(monkeypatch, "compare", *options, "--seeds", 2, "--out", tmp_path) == 0
    assert capsys.readouterr().out.count("1 epochs in") == 2 * 2
    with (tmp_path / "comparison.csv").open() as file:
        rows = {row["guide"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(FIVE_GUIDES)[:2]
    assert list(next(iter(rows.values())))[1:] == list(report.COLUMNS)
    assert all(float(row["evidence_seed_sd"]) > 0 for row in rows.values())
    assert "seeds: 0, 1" in (tmp_path / "index.html").read_text()


def test_interruption_reports_what_is_trained(monkeypatch, tmp_path, capsys):
    def broken(split, **options):
        yield next(five_guides(split, epochs=1, hidden=8, device="cpu", progress=False))
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "five_guides", broken)
    assert run(monkeypatch, "compare", "--out", tmp_path, "--num-particles", 30) == 130
    assert (tmp_path / "index.html").exists()
    assert "interrupted: reporting on what is trained, normal" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num-particles", 10), "num_particles must be at least 30"),
        (("--seeds", 0), "seeds must be at least 1"),
        (("--epochs", -1), "epochs must be at least 1"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--out", "/proc/nowhere"), "cannot write to the folder /proc/nowhere"),
    ],
)
def test_what_the_user_can_mend_is_one_line(monkeypatch, tmp_path, capsys, arguments, message):
    out = () if "--out" in arguments else ("--out", tmp_path)
    assert run(monkeypatch, "compare", *arguments, *out) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
def test_absent_cuda_is_said(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "compare", "--device", "cuda", "--out", tmp_path) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_help_lists_the_subcommand_and_its_flags(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    assert "compare" in capsys.readouterr().out
    assert run(monkeypatch, "compare", "--help") == 0
    assert "--latent-dim" in capsys.readouterr().out
