"""(b) A language model small enough for its entropies to be known: a second-order Markov chain over a few words.

Shape legend: P prompts, W words, V = W + 1 tokens (the last one ends an answer), C = W + 1 contexts of a place (a word,
or the start), T tokens of the longest answer, A answers to each prompt.

Prompt x has a temperature and a probability to stop. The next token after the words u, v:

    P(end | x, u, v) = stop(x),   P(w | x, u, v) = (1 - stop(x)) softmax_w(scores[u, v, w] / temperature(x)),

and the first token of an answer is always a word. Scores are drawn once: what people would call the language.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.int64]


def entropy(law: Array) -> Array:
    """Shannon entropy of laws (..., V), nats: (...); 0 log 0 counts as 0."""
    value: Array = -np.sum(law * np.log(np.where(law > 0, law, 1.0)), axis=-1)
    return value


@dataclass(frozen=True)
class Answers:
    """Sampled answers; tokens beyond an answer's end are -1."""

    tokens: Ids  # (P, A, T)
    lengths: Ids  # (P, A), the end token counted
    ended: NDArray[np.bool_]  # (P, A) whether the end token was drawn before the cut


@dataclass(frozen=True)
class Chain:
    """The model for P prompts."""

    scores: Array  # (C, C, W)
    temperature: Array  # (P,)
    stop: Array  # (P,)
    max_tokens: int

    @property
    def words(self) -> int:
        return int(self.scores.shape[-1])

    @property
    def vocabulary(self) -> int:
        return self.words + 1

    @cached_property
    def word_law(self) -> Array:
        """(P, C, C, W) law of the next word, given that there is one."""
        logits = self.scores / self.temperature[:, None, None, None]
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        law: Array = weights / weights.sum(axis=-1, keepdims=True)
        return law

    @cached_property
    def laws(self) -> Array:
        """(P, C, C, V) next-token law after two words; at the start (both contexts `words`) no end is possible."""
        stop = np.broadcast_to(self.stop[:, None, None, None], (*self.word_law.shape[:-1], 1)).copy()
        stop[:, self.words, self.words] = 0
        law: Array = np.concatenate([(1 - stop) * self.word_law, stop], axis=-1)
        return law

    @cached_property
    def entropies(self) -> Array:
        """(P, C, C) entropy of each next-token law."""
        return entropy(self.laws)

    @cached_property
    def visits(self) -> Array:
        """(P, C, C) expected number of tokens of an answer that are predicted after each pair of words: exact."""
        contexts = self.words + 1
        alive = np.zeros((len(self.stop), contexts, contexts))
        alive[:, self.words, self.words] = 1
        total = np.zeros_like(alive)
        for _ in range(self.max_tokens):
            total += alive
            following = np.zeros_like(alive)
            following[:, :, : self.words] = np.einsum("puv,puvw->pvw", alive, self.laws[..., : self.words])
            alive = following
        return total

    @property
    def sequence_entropy(self) -> Array:
        """(P,) entropy of the whole answer, nats, by the chain rule: the sum over places of the expected entropy."""
        value: Array = np.einsum("puv,puv->p", self.visits, self.entropies)
        return value

    @property
    def mean_length(self) -> Array:
        """(P,) expected tokens of an answer, the end token counted."""
        value: Array = self.visits.sum(axis=(1, 2))
        return value

    def bigram_entropies(self, by_prompt: bool) -> Array:
        """Entropy of the next token given one word alone: (P, W).

        The law is averaged over what stands before the word, weighted by how often each occurs; over the prompts too,
        unless `by_prompt`.
        """
        joint = np.einsum("puv,puvt->pvt", self.visits, self.laws)[:, : self.words]
        if not by_prompt:
            joint = np.broadcast_to(joint.sum(axis=0), joint.shape)
        return entropy(joint / joint.sum(axis=-1, keepdims=True))

    def sample(self, rng: np.random.Generator, answers: int, factor: float = 1.0) -> Answers:
        """A answers to each prompt from the same chain at `factor` times the temperature."""
        source = self if factor == 1 else Chain(self.scores, self.temperature * factor, self.stop, self.max_tokens)
        prompts = np.arange(len(self.stop))[:, None]
        before, last = (np.full((len(self.stop), answers), self.words) for _ in range(2))
        tokens = np.full((len(self.stop), answers, self.max_tokens), -1)
        going = np.ones_like(last, dtype=bool)
        cumulative = source.laws.cumsum(axis=-1)
        for place in range(self.max_tokens):
            drawn = rng.random(last.shape)
            # The last sum may round to just below 1.
            token = np.minimum((cumulative[prompts, before, last] <= drawn[..., None]).sum(axis=-1), self.words)
            tokens[..., place] = np.where(going, token, -1)
            going &= token != self.words
            before, last = last, np.where(going, token, last)
        return Answers(tokens, (tokens >= 0).sum(axis=-1), ~going)

    def token_entropies(self, answers: Answers) -> Array:
        """(P, A, T) entropy of the law that predicts each token of the answers; 0 beyond an end."""
        prompts = np.arange(len(self.stop))[:, None, None]
        words = np.where(answers.tokens == self.words, -1, answers.tokens)
        start = np.full((*words.shape[:2], 2), self.words)
        context = np.concatenate([start, words], axis=-1)
        found = self.entropies[prompts, context[..., :-2], context[..., 1:-1]]
        return np.where(answers.tokens >= 0, found, 0.0)

    def log_probabilities(self, answers: Answers) -> Array:
        """(P, A) log-probability of each answer, nats."""
        prompts = np.arange(len(self.stop))[:, None, None]
        words = np.where(answers.tokens == self.words, -1, answers.tokens)
        context = np.concatenate([np.full((*words.shape[:2], 2), self.words), words], axis=-1)
        law = self.laws[prompts, context[..., :-2], context[..., 1:-1], answers.tokens]
        total: Array = np.where(answers.tokens >= 0, np.log(np.where(law > 0, law, 1.0)), 0.0).sum(axis=-1)
        return total
