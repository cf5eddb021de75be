"""The first optimizer of a process imports torch._dynamo, a second by itself: done here, where no test's time limit runs."""

import torch

torch.optim.SGD([torch.zeros(1)], lr=1.0)
