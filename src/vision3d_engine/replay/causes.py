"""What usually makes an operation return NaN or infinity, in one sentence."""

import re

from vision3d_engine.core.replay_command import replay_command

_NO_SOFTMAX = "a row of nothing but -inf has no softmax: leave out rows that a mask covers completely"
_CAUSES = {
    r"^checkpoint": "the operation lies in what is checkpointed: use_reentrant=False shows which it is",
    r"softmax|attention": _NO_SOFTMAX,
    r"(batch|layer|group|instance|rms)_?norm": "a normalization divides by 0 where its numbers are equal and eps is "
    "0, and overflows where they are large",
    r"log": "the logarithm of 0 is -inf, and of a negative number NaN: clamp what is inside, or use log1p or "
    "log_softmax",
    r"exp": "exp overflows above 88 in fp32 (11 in fp16): subtract the maximum, or use logsumexp, softmax or "
    "binary_cross_entropy_with_logits",
    r"rsqrt|sqrt": "the gradient of sqrt at 0 is infinite, and the root of a negative number NaN: add a small number "
    "inside the root",
    r"norm|cdist|dist": "the gradient of a norm at 0 is not defined: add a small number inside, or leave out pairs of "
    "equal points",
    r"mean|var|std": "a mean over an empty set is 0/0, and a variance needs more than one number: leave out empty sets",
    r"div|reciprocal": "a division by 0, such as a mean over an empty set or a vector of length 0: clamp the divisor",
    r"pow": "a power of 0 with a negative exponent, or a fractional one of a negative number, or its gradient at 0",
    r"acos|asin|atanh|erfinv": "its gradient at the ends of its range is infinite: clamp a little inside of it",
}
OVERFLOW = "large numbers overflow: look at the activations before it, and at the learning rate"
IN_DATA = "the data holds NaN or infinity: look at the sample, and at what its augmentation divides by"
CONSTANT = (
    "a mask or a constant of the script is not finite, and what it covers is used: look at whether it covers everything"
)
OUTSIDE = (
    "numpy, C or compiled code, or another thread has made it, or torch.empty has left it: look at where the line has "
    "its tensors from"
)
NOT_FOUND = (
    "numpy, C or compiled code has made it, or the step returns a number that it has taken out of torch: look for the "
    "first row below that is not finite, or open the step with --pdb"
)
_UNDEFINED = (
    "infinity minus infinity, 0 times infinity, or infinity over infinity: use a large finite number in its place, or "
    "leave out what it stands for"
)
_BEFORE = "an earlier update has broken the weights; replay the step before: "
_AT_FIRST = "the weights were broken before the first update: look at how the model is made, or at what it has loaded"


def cause_of_operation(name: str) -> str:
    """Return a sentence, given the name of an operation or of its backward node."""
    return next((text for part, text in _CAUSES.items() if re.search(part, name, re.IGNORECASE)), OVERFLOW)


def cause_of_undefined(name: str) -> str:
    """Return a sentence, given the name of an operation that has made NaN of infinity."""
    return _NO_SOFTMAX if re.search(r"softmax|attention", name, re.IGNORECASE) else _UNDEFINED


def cause_in_weights(step: int) -> str:
    """Return a sentence, given the step that begins with such weights, and the command that looks further."""
    return _BEFORE + replay_command(step - 1) if step > 1 else _AT_FIRST
