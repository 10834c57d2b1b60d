"""Random numbers that follow from what they are for, not from how many were drawn before.

Imports torch only where it is needed: `--help` comes from files that draw by `derive`, and has to be quick.
"""

import contextlib
import hashlib
from collections.abc import Iterator


def derive(*numbers: int) -> int:
    """A seed that mixes all the numbers: unlike sums, (1, 0) and (0, 1) do not meet."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()  # the CPU generator takes 32 bits
    return int.from_bytes(digest, "little")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's CPU generator starts from `seed`; afterwards it goes on as if nothing had been drawn."""
    import torch

    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
