"""What a network call of fashion-gbm costs on a CPU, by memory layout, compiled and by precision.

    python -m bench.unet_layout

Milliseconds a sample at a batch of 64 on one thread, medians of interleaved rounds; and the largest
difference of the output from that of the layout with channels first.

    channels first   the U-Net as it was
    channels last    the U-Net as it is: its convolutions read the channels of a pixel together
    compiled         channels last, with torch.compile
    bfloat16         channels last, under autocast; slow without AVX-512
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastmsgm
from bench.harness import results

BENCHMARK, BATCH, ROUNDS = "unet_layout", 64, 7


def providers(net: Any, x: Tensor, condition: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    """Return the ways to call the network, by name."""
    c_noise = torch.zeros(len(x))

    def first() -> Tensor:
        with ChannelsFirst():
            return net(x, c_noise, **condition)

    def half() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x, c_noise, **condition).float()

    compiled = torch.compile(net, dynamic=False)
    return {
        "channels first": first,
        "channels last": lambda: net(x, c_noise, **condition),
        "compiled": lambda: compiled(x, c_noise, **condition),
        "bfloat16": half,
    }


class ChannelsFirst(TorchDispatchMode):
    """Ignores the request for channels last."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        if options.get("memory_format") is torch.channels_last:
            options["memory_format"] = torch.contiguous_format
        return function(*args, **options)


@torch.inference_mode()
def main() -> None:
    """Time all in turn, and append the medians to the results."""
    torch.set_num_threads(1)
    model = fastmsgm.load("fashion-gbm")
    x = torch.randn(BATCH, *model.shape, generator=torch.Generator().manual_seed(0))
    calls = providers(model.net, x, {"label": torch.arange(BATCH) % model.classes})
    outputs = {name: call() for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.process_time()
            call()
            times[name].append(1e3 * (time.process_time() - began) / BATCH)
    for name, found in times.items():
        difference = float((outputs[name] - outputs["channels first"]).abs().max())
        value, low, high = statistics.median(found), min(found), max(found)
        note = f"from {low:.2f} to {high:.2f}, {ROUNDS} rounds; differs by {difference:.1e}"
        print(f"{name}: {value:.2f} ms a sample ({note})")
        results.append(
            benchmark=BENCHMARK, quantity=name, value=value, unit="ms a sample", note=note
        )


if __name__ == "__main__":
    main()
