"""The command ``check`` with an attack that is not among its own choice."""

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from empirical.attacks import ddn
from empirical.cli.main import main
from empirical.datasets import load
from empirical.ensembles import from_stack
from empirical.measurement import verified_radius
from empirical.results import read_table

# A search in float32 that is pulled back in float64 ends this near to one in float64.
SEARCHED = 0.01


def test_the_attack_asked_for_is_the_one_made(tmp_path):
    """DDN: l_2 alone, at the distances that the library's own search finds."""
    torch.manual_seed(0)
    data, net = load("digits"), nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    x, y = torch.tensor(data.x_train).float(), torch.tensor(data.y_train)
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        adam.step()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    arguments = ["--data", "digits", "--examples", "12", "--removed", "0.5", "--crown", "0"]
    done = CliRunner().invoke(
        main,
        ["check", str(tmp_path / "net.pt"), *arguments, "--attacks", "ddn", "--out", str(tmp_path / "run")],
    )
    assert done.exit_code == 0, done.output
    rows = read_table(tmp_path / "run" / "measure" / "measure.parquet").to_pandas()
    radius = rows[rows["quantity"] == "radius"]
    assert set(zip(radius["method"], radius["norm"], strict=True)) == {("ddn", "l2")}
    nets = from_stack(net.double())
    assert nets is not None
    x, y = torch.tensor(data.x_test[:12]), torch.tensor(data.y_test[:12])
    ours = verified_radius(nets, x, y, *ddn(nets, x, y, steps=100), p=2)[0]
    assert (ours > 0).any()
    found = radius.sort_values("example")["value"].to_numpy()
    assert found == pytest.approx(ours.numpy(), rel=SEARCHED)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for method in ("ddn", "best"):
        assert f'<th scope="row">{method}</th>\n<td>{found.mean():.4g}</td>' in page
    assert f" to {found.mean():.3g}</b>" in page
