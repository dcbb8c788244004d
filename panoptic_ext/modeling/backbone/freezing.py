"""Parts of a model that are not trained: without gradient, and in evaluation mode in training, too.

Where all that comes before a layer is frozen, its input needs no gradient, so that autograd keeps
nothing of a frozen beginning of the network, neither memory nor time.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from panoptic_ext.errors import ConfigError, unknown
from panoptic_ext.modeling.backbone.backbone_layers import stages_of_names

__all__ = [
    "early_parameters",
    "freeze_parameters",
    "norm_parameters",
    "parameters_below",
    "put_frozen_in_evaluation",
]

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def parameters_below(model: nn.Module, prefixes: Collection[str]) -> set[str]:
    """Names of the parameters that are, or lie below, one of `prefixes`.

    Raises:
        ConfigError: a prefix fits no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    found = set()
    for prefix in prefixes:
        below = {name for name in names if f"{name}.".startswith(f"{prefix.rstrip('.')}.")}
        if not below:
            parts = {n.rsplit(".", i)[0] for n in names for i in range(n.count(".") + 1)}
            mend = "each is the beginning of a parameter's name, up to a dot"
            raise ConfigError(
                unknown("part of the model in MODEL.FREEZE", prefix, sorted(parts), mend=mend)
            )
        found |= below
    return found


def early_parameters(backbone: nn.Module, number: int) -> set[str]:
    """Names of the parameters of the stem and of the first `number` - 1 stages of a backbone.

    Args:
        backbone: without a feature pyramid; it has a method `parameter_stages`, which gives the
            stage of each parameter by its name, or parameters with usual names of blocks.
        number: 1 is the stem alone.

    Raises:
        ConfigError: the stages are unknown, or fewer.
    """
    names = [name for name, _ in backbone.named_parameters()]
    stages_of = getattr(backbone, "parameter_stages", lambda: _stages_below(names))
    stages = stages_of()
    if not stages:
        raise ConfigError(
            f"MODEL.BACKBONE.FREEZE is {number}, but the stages of {type(backbone).__name__} are "
            "unknown; set it to 'all' or 0, or name what to freeze in MODEL.FREEZE"
        )
    if number - 1 > max(stages.values()):
        raise ConfigError(
            f"MODEL.BACKBONE.FREEZE is {number}, but the backbone has {max(stages.values())} "
            f"stages; expected at most {max(stages.values()) + 1}, or 'all'"
        )
    return {name for name, stage in stages.items() if stage < number}


def _stages_below(names: list[str]) -> dict[str, int]:
    """As `stages_of_names`, also of a backbone that lies in other modules, as in DETR."""
    stages = stages_of_names(names)
    around = {name.partition(".")[0] for name in names}
    if stages or len(around) != 1 or not all("." in name for name in names):
        return stages
    prefix = f"{around.pop()}."
    inside = _stages_below([name.removeprefix(prefix) for name in names])
    return {prefix + name: stage for name, stage in inside.items()}


def norm_parameters(module: nn.Module) -> tuple[set[str], list[nn.Module]]:
    """The batch norms of a module, and the names of their parameters."""
    norms = {name: m for name, m in module.named_modules() if isinstance(m, _BATCH_NORMS)}
    names = {f"{n}.{p}" if n else p for n, m in norms.items() for p, _ in m.named_parameters()}
    return names, list(norms.values())


def freeze_parameters(
    model: nn.Module, names: Collection[str], norms: Collection[nn.Module] = ()
) -> None:
    """Freeze parameters by name, and keep what they leave without training in evaluation mode.

    Args:
        model: changed in place.
        names: of its parameters.
        norms: modules that stay in evaluation mode in any case.
    """
    chosen = set(names)
    for name, parameter in model.named_parameters():
        if name in chosen:
            parameter.requires_grad_(False)
    kept = [*_wholly_frozen(model, "", chosen), *norms]
    if kept:
        model.register_forward_pre_hook(_KeepInEvaluation(kept))


class _KeepInEvaluation:
    """A hook of the model: `train()` puts all its parts in training mode, the next pass these back.

    A hook, because it works for any model, also under DistributedDataParallel and when copied.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules

    def __call__(self, _model: nn.Module, _inputs: Any) -> None:
        for module in self.modules:
            if module.training:
                module.eval()


def put_frozen_in_evaluation(model: nn.Module) -> None:
    """Put what `freeze_parameters` froze in evaluation mode now, as the next forward pass would.

    For code that looks for norms in training mode behind `model.train()`.
    """
    for hook in model._forward_pre_hooks.values():
        if isinstance(hook, _KeepInEvaluation):
            hook(model, ())


def _wholly_frozen(module: nn.Module, prefix: str, frozen: Collection[str]) -> list[nn.Module]:
    """The largest modules inside `module` whose parameters are all named in `frozen`."""
    names = [prefix + name for name, _ in module.named_parameters()]
    if names and all(name in frozen for name in names):
        return [module]
    return [
        part
        for name, child in module.named_children()
        for part in _wholly_frozen(child, f"{prefix}{name}.", frozen)
    ]
