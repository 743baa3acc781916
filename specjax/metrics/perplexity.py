"""How surprising a text is to a model: perplexity per token and bits per byte, from summed log-probabilities.

Perplexity is the exponential of a mean over tokens, so that of a corpus comes from the corpus' sums and not from its
texts' perplexities. Per token it depends on the tokenizer; bits per byte compare models with different ones.
"""

import math

NAME = 'perplexity|unit:token'
BITS_NAME = 'bits_per_byte'


def perplexity(log_prob: float, num_tokens: int) -> float:
  """exp of the mean negative log-probability of a token.

  Args:
    log_prob: nats, summed over tokens.
    num_tokens: how many.

  Returns:
    At least 1; inf where the mean exceeds what a float holds or there is a token of probability 0, NaN without tokens.
  """
  if not num_tokens:
    return math.nan
  mean = -log_prob / num_tokens
  return math.exp(mean) if mean < 700 else math.inf


def bits_per_byte(log_prob: float, num_bytes: int) -> float:
  """Mean negative log-probability in bits of a UTF-8 byte; NaN without bytes."""
  return -log_prob / math.log(2) / num_bytes if num_bytes else math.nan
