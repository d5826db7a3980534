"""Which tensors a loss would move, read off its graph: no backward pass is taken."""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn

__all__ = ["describe_tensor", "leaves_of"]


def leaves_of(loss: Tensor) -> list[Tensor]:
    """Return the tensors that a backward pass would give a gradient, each once.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> [tuple(leaf.shape) for leaf in leaves_of(layer.weight.sum())]
        [(1, 2)]
    """
    if loss.grad_fn is None:
        return [loss] if loss.requires_grad else []
    found, seen, rest = {}, set(), [loss.grad_fn]
    while rest:
        node = rest.pop()
        if node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:  # AccumulateGrad's
            found[id(leaf)] = leaf
        rest += [after for after, _ in node.next_functions if after is not None]
    return list(found.values())


def describe_tensor(tensor: Tensor, **sides: Callable) -> str:
    """Return where a tensor is found in what is given by name, or its shape.

    Looks into attributes, lists, mappings and closures, where modules do not.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = [nn.Linear(2, 2)]  # a list hides them from the module
        >>> net = Net()
        >>> describe_tensor(net.layers[0].bias, model=net)
        'model.layers[0].bias'
    """
    for name, side in sides.items():
        for path, found in _walk(name, side, depth=5, seen=set()):
            if found is tensor:
                return path
    return f"a tensor of shape {tuple(tensor.shape)}"


def _walk(path: str, thing: object, depth: int, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(thing, Tensor):
        yield path, thing
        return
    if depth == 0 or id(thing) in seen or isinstance(thing, (str, bytes, int, float, type)):
        return
    seen.add(id(thing))
    for name, part in _parts(thing):
        yield from _walk(f"{path}{name}", part, depth - 1, seen)


def _parts(thing: object) -> Iterator[tuple[str, object]]:
    """Yield what a thing holds, with the way to it."""
    if isinstance(thing, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in thing.items())
        return
    if isinstance(thing, (list, tuple, set)):
        yield from ((f"[{i}]", value) for i, value in enumerate(thing))
        return
    if isinstance(thing, nn.Module):
        yield from ((f".{n}", part) for n, part in thing.named_parameters(recurse=False))
        yield from ((f".{n}", part) for n, part in thing.named_children())
    inner = getattr(thing, "__func__", thing)  # of a bound method
    if (owner := getattr(thing, "__self__", None)) is not None:
        yield "", owner
    if callable(inner) and hasattr(inner, "__code__"):
        cells = zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True)
        yield from ((f":{name}", cell.cell_contents) for name, cell in cells)
        known = inner.__globals__
        yield from ((f":{n}", known[n]) for n in inner.__code__.co_names if n in known)
        return
    named = getattr(thing, "__dict__", {})
    yield from ((f".{n}", part) for n, part in named.items() if not n.startswith("__"))
