"""Rows of (prompt, response), padded for transport or packed into one sequence for the model.

Shapes: R rows, T tokens of the longest, P places of the packed sequence, N scored tokens of all rows.

A packed sequence has each prompt once, however many rows answer it, followed by these rows' responses without their
last tokens, from which nothing is predicted:

    prompt A | response 1 of A | response 2 of A | prompt B | response 1 of B | filler

Positions go on from the prompt in each response. Which place sees which is `visible`; `mallowspo.attention` computes
just that, so no response sees another, nor one prompt another.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mallowspo.errors import InputError


class Row(NamedTuple):
    """Token ids of one prompt with one response to it."""

    prompt: Sequence[int]
    response: Sequence[int]
    score_prompt: bool = False  # score the prompt's tokens too, but for its first, which nothing predicts

    @property
    def scored(self) -> int:
        """Number of tokens that are scored."""
        return len(self.response) + (len(self.prompt) - 1 if self.score_prompt else 0)


class Batch(NamedTuple):
    """Rows, padded on the right."""

    tokens: Tensor  # (R, T) token ids
    mask: Tensor  # (R, T) 1 for prompt and response, 0 for padding
    response: Tensor  # (R, T) True where a token is scored: the response, and the prompt where a row says so
    prompt: Tensor  # (R,) number of tokens of the prompt; rows with equal prompts share them when packed

    def to(self, device: str | torch.device) -> "Batch":
        return Batch(*(values.to(device) for values in self))

    def rows(self) -> list[Row]:
        """The rows again."""
        ends, starts = self.mask.sum(dim=1).tolist(), self.prompt.tolist()
        with_prompt = (self.response.sum(dim=1) > self.mask.sum(dim=1) - self.prompt).tolist()
        return [
            Row(tokens[:start], tokens[start:end], flag)
            for tokens, start, end, flag in zip(self.tokens.tolist(), starts, ends, with_prompt, strict=True)
        ]


def make_batch(given: Sequence[tuple[Sequence[int], Sequence[int]] | Row]) -> Batch:
    """Pad rows (or prompts with responses) on the right. Padding goes by length, never by the id of a pad token.

    Raises:
        InputError: for an empty prompt or response; there is nothing to predict from, or to predict.
    """
    rows = [Row(*row) for row in given]
    if not all(row.prompt and row.response for row in rows):
        raise InputError("a row has an empty prompt or response after tokenisation; see pairs/unusable.jsonl")
    longest = max(len(row.prompt) + len(row.response) for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    scored = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        end = len(row.prompt) + len(row.response)
        tokens[index, :end] = torch.tensor([*row.prompt, *row.response])
        mask[index, :end] = 1
        scored[index, end - row.scored : end] = True
    return Batch(tokens, mask, scored, torch.tensor([len(row.prompt) for row in rows]))


def within_budget(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of items in batches: items of similar length together, at most `budget` tokens a batch.

    Args:
        tokens: number of tokens of each item; one that is longer than the budget makes a batch of its own.
    """
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(tokens)), key=tokens.__getitem__):
        if tokens[index] > room or not batches:
            batches.append([])
            room = budget
        batches[-1].append(index)
        room -= tokens[index]
    return batches


class Segment(NamedTuple):
    """A run of places that stand one after the other: a prompt, or what a response adds to it."""

    length: int  # may be 0: a response of one token adds no place
    prompt: int  # number of places of its prompt, which it sees besides itself; 0 for a prompt


class Packing(NamedTuple):
    """Rows as one sequence of P places."""

    tokens: Tensor  # (1, P)
    positions: Tensor  # (1, P) in its row, from 0
    segment: Tensor  # (P,) number of the segment that a place belongs to
    prompt: Tensor  # (P,) number of the segment that is its prompt
    segments: tuple[Segment, ...]  # each prompt, followed by its responses
    sources: Tensor  # (N,) the place whose hidden state predicts each scored token, row by row
    targets: Tensor  # (N,) the scored tokens
    rows: Tensor  # (N,) which row each belongs to
    places: Tensor  # (N,) where in its row each stands

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the place `query` sees the place `key`: broadcast tensors of places; bool."""
        of_key = self.segment[key]
        return ((self.segment[query] == of_key) | (self.prompt[query] == of_key)) & (key <= query)


def pack(rows: Sequence[Row], multiple: int, device: str | torch.device = "cpu") -> Packing:
    """Pack rows in their order; those with equal prompts go together and share it.

    Args:
        multiple: P is rounded up to a multiple of it by a segment of filler that no row sees.
    """
    answers: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        answers.setdefault(tuple(row.prompt), []).append(index)
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    prompt_starts, response_starts = [0] * len(rows), [0] * len(rows)

    def add(part: Sequence[int], prompt: int) -> int:
        start = len(tokens)
        segments.append(Segment(len(part), prompt))
        tokens.extend(part)
        positions.extend(range(prompt, prompt + len(part)))
        return start

    for prompt, indices in answers.items():
        start = add(prompt, 0)
        for index in indices:
            prompt_starts[index] = start
            response_starts[index] = add(rows[index].response[:-1], len(prompt))
    if len(tokens) % multiple:
        add([0] * (-len(tokens) % multiple), 0)
    return _packing(tokens, positions, segments, _scored(rows, prompt_starts, response_starts), device)


def _scored(rows: Sequence[Row], prompt_starts: list[int], response_starts: list[int]) -> list[list[int]]:
    """Source, target, row and place of each scored token, as four lists."""
    columns: list[list[int]] = [[], [], [], []]
    for index, row in enumerate(rows):
        length, end = len(row.prompt), len(row.prompt) + len(row.response)
        places = range(end - row.scored, end)
        into_response = response_starts[index] - length
        columns[0] += [(prompt_starts[index] if at <= length else into_response) + at - 1 for at in places]
        columns[1] += [*row.prompt, *row.response][end - row.scored :]
        columns[2] += [index] * row.scored
        columns[3] += places
    return columns


def _packing(
    tokens: list[int],
    positions: list[int],
    segments: list[Segment],
    scored: list[list[int]],
    device: str | torch.device,
) -> Packing:
    lengths = torch.tensor([segment.length for segment in segments])
    numbers = torch.arange(len(segments))
    # The last prompt so far.
    prompts = torch.where(torch.tensor([segment.prompt == 0 for segment in segments]), numbers, 0).cummax(0).values
    return Packing(
        tokens=torch.tensor([tokens], device=device),
        positions=torch.tensor([positions], device=device),
        segment=numbers.repeat_interleave(lengths).to(device),
        prompt=prompts.repeat_interleave(lengths).to(device),
        segments=tuple(segments),
        **dict(zip(("sources", "targets", "rows", "places"), torch.tensor(scored, device=device), strict=True)),
    )
