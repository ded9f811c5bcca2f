"""What attention keeps while answers are sampled: each prompt read once, and room for the tokens to come.

Prompts of like length are read together, so that little of the work goes into padding; several answers to one prompt
share its reading. The keys and values of all then stand in one cache, flush right, with room behind them: appending a
token copies that token, not all that was kept before it, which is what transformers' own cache does.

Shapes: B rows of the batch, H key-value heads, L places, D units of a head, V tokens of the vocabulary.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from mallowspo.errors import InputError

#: Tokens that are read at once, padding included: many enough for fast products, few enough that lengths are alike.
READ_TOGETHER = 1024
#: Places of room, each time that there is none left.
ROOM = 64


class RoomyLayer(DynamicLayer):
    """Keys and values (B, H, L, D) at the beginning of longer buffers."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[Tensor] = []
        self._shown: list[Tensor] = []

    @classmethod
    def joined(cls, parts: Sequence[tuple[Tensor, Tensor, Any]], batch: int, longest: int) -> "RoomyLayer":
        """Of layers that read a part of the batch each: (rows of the batch, row of the layer for each of them, layer).

        What stands before a shorter prompt is 0: masked, but a weight of 0 times what memory held may be no number.
        """
        layer = cls()
        first = parts[0][2]
        layer.lazy_initialization(first.keys, first.values)
        for name in ("keys", "values"):
            like = getattr(first, name)
            buffer = like.new_empty(batch, like.shape[1], longest + ROOM, like.shape[-1])
            for rows, own, part in parts:
                kept = getattr(part, name)
                padding = longest - kept.shape[-2]
                buffer[rows, :, :padding] = 0
                buffer[rows, :, padding:longest] = kept[own]
            layer._buffers.append(buffer)
        layer._show(longest)
        return layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        total = length + key_states.shape[-2]
        # Other tensors than were shown last: rows have left since, or nothing was there.
        same = bool(self._shown) and self.keys is self._shown[0]
        if not same or total > self._buffers[0].shape[-2]:
            behind: list[tuple[Any, Tensor]] = [(self.keys, key_states), (self.values, value_states)]
            self._buffers = [_with_room(kept, length, new) for kept, new in behind]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, length:total] = new
        return self._show(total)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self._shown = [buffer[:, :, :length] for buffer in self._buffers]
        self.keys, self.values = self._shown
        return self.keys, self.values


def _with_room(kept: Tensor, length: int, new: Tensor) -> Tensor:
    """The `length` places of `kept`, with room for `new` and more behind them."""
    buffer = new.new_empty(*new.shape[:2], length + new.shape[-2] + ROOM, new.shape[-1])
    if length:
        buffer[:, :, :length] = kept
    return buffer


@contextmanager
def _dense_input(layer: Any) -> Iterator[None]:
    """The layer's input without gaps. The last places of all rows have gaps between them, and where such an input meets
    a frozen weight (as merged adapters leave it), PyTorch makes one copy of the weight for each row: gigabytes."""
    if layer is None:  # a model of somebody's own that does not name its head
        yield
        return
    handle = layer.register_forward_pre_hook(lambda _, inputs: tuple(value.contiguous() for value in inputs))
    try:
        yield
    finally:
        handle.remove()


class _Part(NamedTuple):
    """Prompts that were read together."""

    rows: Tensor  # of the batch
    own: Tensor  # for each of them, the row of `logits` and of the cache
    logits: Tensor
    cache: Any


class Reader:
    """A causal language model that reads tokens into a cache.

    Args:
        model: of transformers, under PEFT or not.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        # Models without learned or rotary positions take no position_ids; a few take no logits_to_keep.
        bare = getattr(model, "get_base_model", lambda: model)()  # what PEFT wraps
        self._takes = inspect.signature(bare.forward).parameters
        # Layers that keep a window or a state are not joined here: such a model reads a batch as a whole.
        layers = DynamicCache(config=bare.config).layers
        self._joins = "past_key_values" in self._takes and all(type(layer) is DynamicLayer for layer in layers)
        self._head = bare.get_output_embeddings()

    def read(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """One forward: tokens (B, l) and positions (B, l), behind what the cache keeps; mask (B, L + l).

        Returns:
            Logits behind the last token (B, V), and the cache.

        Raises:
            InputError: the model keeps no keys and values.
        """
        given: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
        given |= {"past_key_values": cache, "logits_to_keep": 1}
        with _dense_input(self._head):
            output = self.model(**{name: value for name, value in given.items() if name in self._takes}, use_cache=True)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            raise InputError(
                "the model keeps no key-value cache (past_key_values), so no answers can be sampled from it"
            )
        return output.logits[:, -1], cache

    def read_prompts(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Any]:
        """Read B prompts, the same one once.

        Returns:
            Logits behind each prompt (B, V), the mask (B, longest prompt) of prompts padded on the left, and the cache.
        """
        mask = _padded_left(prompts)[1].to(self.model.device)
        if not self._joins:
            logits, cache = self._read_padded(prompts, None)
            return logits, mask, cache
        parts = [self._read_part(group, prompts) for group in _alike(prompts)]
        logits = parts[0].logits.new_empty(len(prompts), parts[0].logits.shape[-1])
        for part in parts:
            logits[part.rows] = part.logits[part.own]
        return logits, mask, _join(parts, *mask.shape)

    def _read_part(self, group: list[tuple[int, ...]], prompts: Sequence[Sequence[int]]) -> _Part:
        place = {prompt: own for own, prompt in enumerate(group)}
        rows = [row for row, prompt in enumerate(prompts) if tuple(prompt) in place]
        own = [place[tuple(prompts[row])] for row in rows]
        logits, cache = self._read_padded(group, Cache(layer_class_to_replicate=DynamicLayer))
        return _Part(torch.tensor(rows, device=logits.device), torch.tensor(own, device=logits.device), logits, cache)

    def _read_padded(self, prompts: Sequence[Sequence[int]], cache: Any) -> tuple[Tensor, Any]:
        tokens, mask = (values.to(self.model.device) for values in _padded_left(prompts))
        return self.read(tokens, mask, (mask.cumsum(dim=1) - 1).clamp_min(0), cache)


def _alike(prompts: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, ...]]]:
    """The different prompts, the shortest first, in groups of READ_TOGETHER padded tokens or of a single prompt."""
    group: list[tuple[int, ...]] = []
    for prompt in sorted(dict.fromkeys(map(tuple, prompts)), key=len):
        if group and (len(group) + 1) * len(prompt) > READ_TOGETHER:
            yield group
            group = []
        group.append(prompt)
    yield group


def _join(parts: Sequence[_Part], batch: int, longest: int) -> Cache:
    """One cache of all parts, whose own are emptied layer by layer: at no time is all of it there twice."""
    layers: list[Any] = []
    for number in range(len(parts[0].cache.layers)):
        read = [(part.rows, part.own, part.cache.layers[number]) for part in parts]
        layers.append(RoomyLayer.joined(read, batch, longest))
        for part in parts:
            part.cache.layers[number] = DynamicLayer()
    return Cache(layers=layers)


def _padded_left(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, (B, longest). The mask says what is padding, so any id does."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return tokens, mask
