"""The optimizers of torch.optim whose state is one value per entry or one per tensor, with everything switched on that they have."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, optim

Build = Callable[[Iterable[Tensor]], optim.Optimizer]

OPTIMIZERS: Mapping[str, Build] = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.2),
    "sgd-nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.2, nesterov=True, foreach=True),
    "sgd-fused": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.2, fused=True),
    "sgd-plain": lambda p: optim.SGD(p, lr=0.05, weight_decay=0.2, maximize=True),
    "adam": lambda p: optim.Adam(p, lr=0.02, weight_decay=0.2, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.2),
    "adamw-foreach": lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.2, foreach=True),
    "adamw-fused": lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.2, fused=True),
    "adamax": lambda p: optim.Adamax(p, lr=0.02, weight_decay=0.2),
    "nadam": lambda p: optim.NAdam(p, lr=0.02, weight_decay=0.2),
    "radam": lambda p: optim.RAdam(p, lr=0.02, weight_decay=0.2),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.02, momentum=0.9, weight_decay=0.2, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05, weight_decay=0.2, initial_accumulator_value=0.1),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0, weight_decay=0.2),
    "asgd": lambda p: optim.ASGD(p, lr=0.05, weight_decay=0.2, t0=2),
    "rprop": lambda p: optim.Rprop(p, lr=0.02),
}
