"""The roofline: its arithmetic by hand; every operation is measured."""

from __future__ import annotations

import pytest
import torch

from fastmsgm.tools import cli, roofline


def test_a_kernel_that_is_bound_by_memory() -> None:
    """gbm_step of a float32 network moves 12 bytes, 3.58 ps on an H100.

    106 instructions can be issued in this time.
    """
    (model,) = (
        m
        for m in roofline.modelled()
        if (m.kernel, m.variant, m.gpu) == ("gbm_step", "float32", "H100")
    )
    assert model.bytes == 12
    assert model.memory == pytest.approx(12 / 3.35e12)
    assert model.seconds == model.memory
    assert model.other >= model.instructions / (128 * 132 * 1.755e9)
    assert model.slack == pytest.approx(model.memory / model.other)


def test_a_kernel_that_is_bound_by_instructions() -> None:
    (model,) = (
        m
        for m in roofline.modelled()
        if (m.kernel, m.variant, m.gpu) == ("ring_step", "noise", "B200")
    )
    assert model.slack < 1
    assert model.seconds == model.other > model.memory


def test_the_seconds_of_a_card() -> None:
    seconds = roofline.modelled_seconds("gbm_step", "float32", "NVIDIA A100-SXM4-80GB")
    assert seconds == pytest.approx(12 / 2.039e12)
    assert roofline.modelled_seconds("gbm_step", "float32", "NVIDIA GeForce RTX 4090") is None
    with pytest.raises(
        ValueError,
        match=r"kernel and variant must be in .*machine_code\.csv, got 'gbm_step' and 'odd'",
    ):
        roofline.modelled_seconds("gbm_step", "odd", "H100")


def test_every_operation_is_measured() -> None:
    found = roofline.measured(torch.device("cpu"), n=16)
    # The tables of rotation_perturb are built for a model.
    kernels = {m.kernel for m in roofline.modelled()} - {"rotation_perturb"}
    assert kernels <= {m.name.partition(",")[0] for m in found}
    assert all(m.seconds > 0 for m in found)
    copy = found[0]
    assert copy.limit == pytest.approx(copy.seconds)


def test_info_prints_both_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roofline.measured_table, "__defaults__", (16,))
    assert cli.main(["info", "--roofline"]) == 0
    printed = capsys.readouterr().out
    for words in ("modelled, never timed", "measured, cpu", "copy bandwidth", "H200", "egd_step"):
        assert words in printed
