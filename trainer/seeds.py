"""Random seeds as pure functions of what they are for, so that nothing about randomness needs to be saved."""

import hashlib


def hash_seed(text: str) -> int:
    """Return a 63-bit seed derived from the text by sha256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_torch(*parts: int | str) -> None:
    """Seed torch on the CPU and on this process's GPU with a function of the parts, such as (seed, step, rank)."""
    import torch

    value = hash_seed(repr(parts))
    # torch.manual_seed would keep a stack trace of every call while CUDA is not initialised.
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)
