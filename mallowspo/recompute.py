"""What a layer that is computed again for its backward computes only once: products and attentions.

Between them (norms, rotary positions, activations) a layer keeps several times their size for the backward, which is
computed again in little time. `torch.utils.checkpoint` does that, given `contexts`; what is wrapped in `once` is then
taken over from the first time, in the order in which it was computed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor
from torch.utils._pytree import tree_map

Result = TypeVar("Result", Tensor, tuple[Tensor, ...])
#: How the layer under way gets a result: by computing and keeping it, or by taking over what is kept.
Way = Callable[[Callable[[], Any]], Any]

_way: ContextVar[Way | None] = ContextVar("way", default=None)


def once(compute: Callable[[], Result]) -> Result:
    """What `compute` gives, or gave the first time. For the forward of a torch.autograd.Function: without gradient."""
    way = _way.get()
    result: Result = compute() if way is None else way(compute)
    return result


def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For `context_fn` of torch.utils.checkpoint: what a layer is within the first time, and the second."""
    kept: deque[Any] = deque()
    return _within(_keeping(kept)), _within(lambda compute: kept.popleft())


def _keeping(kept: deque[Any]) -> Way:
    """Computes, and keeps results in `kept`."""

    def way(compute: Callable[[], Any]) -> Any:
        result = compute()
        # A copy of its handle: the result itself gets a graph, which would hold `kept`, and neither be freed.
        kept.append(tree_map(Tensor.detach, result))
        return result

    return way


@contextmanager
def _within(way: Way) -> Iterator[None]:
    token = _way.set(way)
    try:
        yield
    finally:
        _way.reset(token)


@contextmanager
def watched() -> Iterator[deque[Any]]:
    """All results of `once` within."""
    kept: deque[Any] = deque()
    with _within(_keeping(kept)):
        yield kept
