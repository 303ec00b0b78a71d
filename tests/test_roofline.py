"""The roofline: its arithmetic by hand, and that every operation is measured."""

from __future__ import annotations

import pytest
import torch

from fastmsgm import cli, roofline


def test_a_kernel_that_memory_bounds() -> None:
    """gbm_step of a float32 network moves 12 bytes: on an H100 3.58 ps, in which 106 instructions could be issued."""
    (model,) = (m for m in roofline.modelled() if (m.kernel, m.form, m.gpu) == ("gbm_step", "float32", "H100"))
    assert model.bytes == 12
    assert model.memory == pytest.approx(12 / 3.35e12)
    assert model.seconds == model.memory
    assert model.other >= model.instructions / (128 * 132 * 1.755e9)
    assert model.slack == pytest.approx(model.memory / model.other)


def test_a_kernel_that_instructions_bound() -> None:
    (model,) = (m for m in roofline.modelled() if (m.kernel, m.form, m.gpu) == ("ring_step", "noise", "B200"))
    assert model.slack < 1
    assert model.seconds == model.other > model.memory


def test_the_seconds_of_a_card() -> None:
    seconds = roofline.modelled_seconds("gbm_step", "float32", "NVIDIA A100-SXM4-80GB")
    assert seconds == pytest.approx(12 / 2.039e12)
    assert roofline.modelled_seconds("gbm_step", "float32", "NVIDIA GeForce RTX 4090") is None
    with pytest.raises(ValueError, match=r"kernel and form must be in .*machine_code\.csv, got 'gbm_step' and 'odd'"):
        roofline.modelled_seconds("gbm_step", "odd", "H100")


def test_every_operation_is_measured() -> None:
    found = roofline.measured(torch.device("cpu"), n=16)
    kernels = {m.kernel for m in roofline.modelled()} - {"rotation_perturb"}  # whose tables are its model's
    assert kernels <= {m.name.partition(",")[0] for m in found}
    assert all(m.seconds > 0 for m in found)
    copy = found[0]
    assert copy.limit == pytest.approx(copy.seconds)


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(roofline.measured_table, "__defaults__", (16,))
    assert cli.main(["info", "--roofline"]) == 0
    printed = capsys.readouterr().out
    for words in ("modelled, never timed", "measured, cpu", "copy bandwidth", "H200", "egd_step"):
        assert words in printed
