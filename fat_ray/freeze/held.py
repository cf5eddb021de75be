"""Norm layers whose running statistics stand still once all their parameters are frozen (`freeze.frozen_statistics: hold`)."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from fat_ray.freeze.disguise import Disguised, disguise, reveal
from fat_ray.freeze.sliced import active_runs


class Held(Disguised):
    """Stays in eval mode: it normalises by its running statistics and leaves them as they are, whatever mode the model is put into."""

    def train(self, mode: bool = True) -> "Held":  # noqa: ARG002, FBT001, FBT002  the base's
        """Eval mode."""
        super().train(mode=False)
        return self


def hold_statistics(model: nn.Module) -> None:
    """Holds all norms with running statistics of whose parameters none is trained, also those that never were."""
    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None and _is_frozen(module):
            disguise(module, Held, {})
            module.eval()


def let_go(model: nn.Module) -> None:
    """Takes it back: the norms are plain again, and in the mode of the model."""
    for module in model.modules():
        if isinstance(module, Held):
            reveal(module, Held)
            module.train(model.training)


def normalises_by_batch(module: nn.Module) -> bool:
    """Whether what the module returns, or keeps, depends on the statistics of the batch, in its present mode."""
    if not isinstance(module, _NormBase):
        return False
    uses_batch = isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    return uses_batch or (module.training and module.running_mean is not None)


def _is_frozen(norm: nn.Module) -> bool:
    own = list(norm.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own) and not active_runs(norm)
