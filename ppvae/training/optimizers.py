"""From parameters by name to a torch optimizer: groups, makers, and Pyro's own unwrapped."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import nn
from torch.optim import LBFGS, Optimizer

from ppvae.protocols import module_of

__all__ = [
    "grouped",
    "make_optimizer",
    "named_parameters",
    "require_maker",
    "under",
    "unwrap",
]


def named_parameters(**sides: Callable) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield what is to be trained by side and name, each once.

    Example:
        >>> [name for name, _ in named_parameters(guide=nn.Linear(1, 2))]
        ['guide.weight', 'guide.bias']
    """
    seen = set()
    for prefix, side in sides.items():
        module = module_of(side)
        for name, parameter in module.named_parameters() if module is not None else ():
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield f"{prefix}.{name}", parameter


def grouped(
    parameters: Mapping[str, nn.Parameter], groups: Mapping[str, Mapping[str, object]]
) -> list[dict[str, object]]:
    """Return torch's parameter groups, one per prefix that has parameters, the rest first.

    Raises:
        ValueError: If a group matches no parameter of its own.

    Example:
        >>> parameters = dict(named_parameters(guide=nn.Linear(1, 2)))
        >>> [group.get("lr") for group in grouped(parameters, {"guide.bias": {"lr": 0.1}})]
        [None, 0.1]
    """
    members: dict[str, list] = {"": [], **{prefix: [] for prefix in groups}}
    for name, parameter in parameters.items():
        matching = [prefix for prefix in groups if under(prefix, name)]
        members[max(matching, key=len, default="")].append((name, parameter))
    if empty := [prefix for prefix in groups if not members[prefix]]:
        raise ValueError(
            f"the parameter groups {empty} match no parameter of their own; there are: "
            f"{', '.join(parameters)}"
        )
    return [
        {"params": named, **groups.get(prefix, {})} for prefix, named in members.items() if named
    ]


def under(prefix: str, name: str) -> bool:
    """Return whether a dotted name begins with a prefix of whole words.

    Example:
        >>> under("guide.head", "guide.head.bias"), under("guide.head", "guide.heads")
        (True, False)
    """
    return f"{name}.".startswith(f"{prefix.rstrip('.')}.")


def require_maker(argument: str, optim: object) -> None:
    """Raise if an argument is an optimizer instead of a way to make one.

    Raises:
        TypeError: If it is, naming the argument.

    Example:
        >>> require_maker("optim", torch.optim.Adam)
    """
    if isinstance(optim, Optimizer) or not callable(optim):
        raise TypeError(
            f"{argument} must make the optimizer, such as partial(torch.optim.Adam, lr=1e-3), but "
            f"is {type(optim).__name__}"
        )


def make_optimizer(optim: Callable[..., Optimizer], groups: list[dict[str, object]]) -> Optimizer:
    """Return the optimizer of some groups, fused where nobody has decided.

    Raises:
        TypeError: If its steps need the loss again, as those of LBFGS do.

    Example:
        >>> groups = grouped(dict(named_parameters(guide=nn.Linear(1, 2))), {})
        >>> make_optimizer(torch.optim.Adam, groups).defaults["fused"]
        True
    """
    options = inspect.signature(optim).parameters
    undecided = all(
        name in options and options[name].default is None for name in ("fused", "foreach")
    )
    made = optim(groups, fused=True) if undecided else optim(groups)
    if isinstance(made, LBFGS):
        raise TypeError(
            "LBFGS is not served: its steps evaluate the loss again, on other draws each time. "
            "Use a first-order optimizer, such as Adam"
        )
    return made


def unwrap(optim: PyroOptim) -> tuple[Callable[..., Optimizer], Mapping[str, float]]:
    """Return the torch optimizer's maker in one of Pyro's, and its clips.

    Raises:
        TypeError: If it decides per parameter, or schedules its rate.

    Example:
        >>> unwrap(pyro.optim.Adam({"lr": 0.1}))[0].keywords
        {'lr': 0.1}
    """
    arguments, clips = optim.pt_optim_args, optim.pt_clip_args
    if callable(arguments) or callable(clips) or isinstance(optim, PyroLRScheduler):
        raise TypeError(
            f"this {type(optim).__name__} decides per parameter or schedules its learning rate: "
            "pass partial(torch.optim.Adam, lr=1e-3) instead, with groups= and scheduler="
        )
    return partial(optim.pt_optim_constructor, **arguments), clips
