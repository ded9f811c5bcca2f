"""How much of the output head is at work at a time; needs no torch, so that a plan can reckon with it."""

#: Rows of hidden states that pass the head at a time, at most: 128 x 49152 float32 logits are 25 MB.
CHUNK = 128
#: Bytes of softmax that the forward keeps for the backward at most; what is beyond them is computed again.
KEEP = 1 << 30


def working_bytes(vocabulary: int, hidden: int) -> int:
    """Bytes at work at most, whatever the number of tokens: of a chunk, logits and softmax; of the head, its gradient
    and a rounded copy."""
    return 4 * vocabulary * (2 * CHUNK + 2 * hidden)
