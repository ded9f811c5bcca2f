"""How much of the output head is at work at a time; needs no torch, so that a plan can reckon with it."""

#: Rows of hidden states, and words of the vocabulary, that are multiplied at a time, at most: 1024 x 4096 float32
#: logits are 17 MB.
ROWS, WORDS = 1024, 4096
#: Rows at a time where whole laws over the vocabulary are wanted: 128 x 49152 float32 logits are 25 MB.
CHUNK = 128
#: Bytes of exponentials that the forward keeps for the backward at most; what is beyond them is computed again.
KEEP = 1 << 30


def working_bytes(vocabulary: int, hidden: int) -> int:
    """Bytes at work at most, whatever the number of tokens: the gradient of the head, and of a tile the logits, their
    slopes by rows and by words, and its share of the gradient."""
    return 4 * vocabulary * hidden + 4 * min(WORDS, vocabulary) * (3 * ROWS + hidden)
