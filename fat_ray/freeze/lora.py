"""Low-rank adapters by peft: put beside the layers of a model, and merged into them again (Hu et al., LoRA, arXiv 2106.09685)."""

import copy
import re
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fat_ray.errors import PolicyError
from fat_ray.spec.run import FreezeSpec

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def add_adapters(model: nn.Module, spec: FreezeSpec, seed: int, outside: Callable[[str], bool]) -> nn.Module:
    """Wraps layers so that each adds `alpha/rank · B A x` to its output, with B = 0 at first: the model still computes what it did.

    What was trainable stays trainable, under the new names of wrapped layers (``fc.weight`` becomes ``fc.base_layer.weight``), so that
    groups cover all of it. A model that has adapters already keeps those.

    Args:
        model: The network; changed in place.
        spec: `rank`, `alpha` and `targets`.
        seed: Of A; torch's global generator stays untouched.
        outside: Whether a layer may have an adapter, given its path.

    Raises:
        PolicyError: peft is not installed, or a target does not exist or cannot have an adapter.
    """
    if any(is_adapter(name) for name, _ in model.named_parameters()):
        return model
    targets = _targets(model, spec, outside)
    try:
        import peft
    except ImportError as error:
        raise PolicyError("freeze.policy = lora needs the package peft: pip install 'fat-ray[lora]'") from error
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A list would also match the ends of other paths; a text is a pattern of whole paths.
    config = peft.LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules="|".join(map(re.escape, targets)))
    devices = sorted({parameter.device.index for parameter in model.parameters() if parameter.is_cuda})
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, model)
    for parameter in trainable:
        parameter.requires_grad_(True)  # noqa: FBT003  torch takes it by position
    return model


def plain_model(model: nn.Module) -> nn.Module:
    """The model without adapters, each merged into its layer, with the keys and modules that it had before; itself if it has none.

    The model given is not changed: its copy is.
    """
    if not any(is_adapter(name) for name, _ in model.named_parameters()):
        return model
    from peft.tuners.lora import LoraLayer

    plain = copy.deepcopy(model)
    for path, module in list(plain.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            owner, _, name = path.rpartition(".")
            setattr(plain.get_submodule(owner), name, module.get_base_layer())
    del plain.peft_config
    return plain


def is_adapter(parameter: str) -> bool:
    """Whether a parameter belongs to an adapter, by its name."""
    return any(part.startswith("lora_") for part in parameter.split("."))


def _targets(model: nn.Module, spec: FreezeSpec, outside: Callable[[str], bool]) -> list[str]:
    """Paths of the layers to wrap; a target that is named must be possible, the others are left out."""
    reasons = dict(_adaptable(model))
    if spec.targets is None:
        chosen = [layer for layer, reason in reasons.items() if not reason and outside(layer)]
        if not chosen:
            raise PolicyError("freeze.policy = lora: no layer outside the head can have an adapter; see freeze.train_head and freeze.head")
        return chosen
    found: dict[str, None] = {}
    for target in spec.targets:
        named = [layer for layer in reasons if layer == target or layer.endswith(f".{target}")]
        free = [layer for layer in named if outside(layer)]
        if not free:
            why = "lies in the head, which trains by itself (freeze.train_head)" if named else "names no Linear or convolution of the model"
            raise PolicyError(f"freeze.targets: {target!r} {why}")
        wrong = next((layer for layer in free if reasons[layer]), None)
        if wrong is not None:
            raise PolicyError(f"freeze.targets: {target!r}: {wrong} cannot have an adapter: {reasons[wrong]}")
        found |= dict.fromkeys(free)
    return list(found)


def _adaptable(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Every linear and convolutional layer below the model, with the reason why it cannot be wrapped or merged; empty if it can."""
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for layer, module in model.named_modules():
        if layer and isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            yield layer, _obstacle(module, model.get_submodule(layer.rpartition(".")[0]), uses)


def _obstacle(module: nn.Module, owner: nn.Module, uses: dict[int, int]) -> str:
    convolution = module if isinstance(module, _CONVOLUTIONS) else None
    reads = isinstance(owner, nn.MultiheadAttention | nn.TransformerEncoderLayer)
    obstacles = {
        "its weight is made of other parameters": is_parametrized(module),
        "another layer has the same weight": any(uses[id(parameter)] > 1 for parameter in module.parameters(recurse=False)),
        f"{type(owner).__name__} reads its weight without calling it": reads,
        "convolutions with groups cannot be merged": convolution is not None and convolution.groups > 1,
        "the adapter would know neither dilation nor the padding mode": convolution is not None
        and (set(convolution.dilation) != {1} or convolution.padding_mode != "zeros"),
        "peft 0.21 takes it for a pointwise Conv2d when it is merged": isinstance(module, nn.Conv3d) and module.kernel_size[:2] == (1, 1),
    }
    return next((reason for reason, applies in obstacles.items() if applies), "")
