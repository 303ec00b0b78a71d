# pyright: reportMissingImports=false
"""The CPU kernels' thread pool: ranges of rows, callers at the same time, and a fork."""

from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import Tensor

from fastmsgm.kernels.cpu import gbm, threads
from tests.ops.backends import CPU
from tests.ops.cases import gbm_step_case

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_row_is_handed_out_once() -> None:
    for n, d in ((1, 10**6), (7, 10**5), (10**5, 3)):
        torch.set_num_threads(4)
        taken: list[int] = []
        threads.over_rows(lambda first, last, taken=taken: taken.extend(range(first, last)), n, d)
        assert sorted(taken) == list(range(n))


def test_callers_at_the_same_time() -> None:
    case = gbm_step_case(200, 784, log_state=False)
    expected = case.run(CPU)["out"]
    results: list[Tensor] = []
    callers = [
        threading.Thread(target=lambda: results.append(case.run(CPU)["out"])) for _ in range(6)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 6
    assert all(torch.equal(x, expected) for x in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # that is the point
def test_kernels_run_after_a_fork() -> None:
    case = gbm_step_case(200, 784, log_state=False)
    expected = case.run(CPU)["out"]
    # Nothing of torch's own parallel operators, whose threads the fork has lost.
    given, out = case.arguments(), torch.empty_like(case.x)
    child = os.fork()
    if child == 0:
        gbm.gbm_step(**given, out=out)
        os._exit(0 if torch.equal(out, expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
