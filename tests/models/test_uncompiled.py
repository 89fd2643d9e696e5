"""Costs are counted without PyTorch's compiler, which is there for whoever asks for it afterwards."""

import subprocess
import sys

COUNT = """
import sys
import torch
from torch.utils.flop_counter import FlopCounterMode
from raysim.models import cost, zoo

model = zoo.build("lenet", {}, (1, 28, 28), 10, 0).to("meta")
before = cost.count(model, (1, 28, 28))
assert "torch._dynamo" not in sys.modules, "the compiler was imported"
assert "torch._dynamo" not in vars(torch)

import torch._dynamo
with FlopCounterMode(display=False) as counter:
    model(torch.zeros(2, 1, 28, 28, device="meta")).sum().backward()
assert before.train_flops == counter.get_total_flops() // 2 == cost.count(model, (1, 28, 28)).train_flops
assert torch.compile(torch.relu, backend="eager")(torch.ones(2)).tolist() == [1, 1]
"""


def test_counting_leaves_the_compiler_out_and_unharmed() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
