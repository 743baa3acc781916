"""Back-off n-gram models as sorted arrays, and their lookup inside jit. Pure; every function takes arrays of any shape.

    order 1      entry t is token t
    order m + 1  sorted by (entry of the first m tokens, last token): the continuations of one entry lie side by side

                     a   b   c            starts   0 2 3 3
                    / \\   \\
    order 2     a a  a c  b a             tokens   a c a

A history is the tuple of its suffixes' entries: member l is the entry of its last l tokens, -1 where they were never seen.
"""

from flax import struct
import jax
import jax.numpy as jnp
from jax import lax
import numpy as np

from specjax.core import errors

MAX_ORDER = 8


@struct.dataclass(kw_only=True)
class NgramModel:
  """A back-off model over the token ids 0 .. V - 1: log P(w | h) in nats is the entry of h w, else backoff(h) + log P(w | h').

  h' is h without its oldest token. Arrays of numpy or jax; `from_tables` builds them.

  Attributes:
    log_probs: tuple of float[N_m], of orders 1..n; N_1 is V. -inf is never predicted.
    backoffs: tuple of float[N_m], of orders 1..n - 1.
    tokens: tuple of int32[N_m], the last token of each entry, of orders 2..n.
    starts: tuple of int32[N_m + 1], where each entry's continuations begin, of orders 1..n - 1.
  """

  log_probs: tuple[jax.Array, ...]
  backoffs: tuple[jax.Array, ...]
  tokens: tuple[jax.Array, ...]
  starts: tuple[jax.Array, ...]

  @property
  def order(self):
    """n, tokens in the longest entry."""
    return len(self.log_probs)

  @property
  def vocab_size(self):
    """V."""
    return self.log_probs[0].shape[0]

  @property
  def num_entries(self):
    """N_1, ..., N_n."""
    return tuple(log_probs.shape[0] for log_probs in self.log_probs)

  @classmethod
  def from_tables(cls, tables):
    """The model of numpy tables by order: (parents int[N], tokens int[N], log_probs float[N], backoffs float[N]).

    `parents` are entries of the order below, sorted, and tokens sorted within one parent; those of order 1 are ignored.
    Backoffs of the highest order are ignored. Stored in float32.
    """
    sizes = [len(table[1]) for table in tables]
    for order, (parents, tokens, _, _) in enumerate(tables[1:], start=2):
      key = np.asarray(parents, np.int64) * sizes[0] + np.asarray(tokens, np.int64)
      if np.any(np.diff(key) <= 0):
        raise errors.DataError(what=f'n-grams of order {order}', got='unsorted or twice', expected='sorted, each once')
    starts = [
        np.searchsorted(np.asarray(table[0], np.int64), np.arange(size + 1)).astype(np.int32)
        for table, size in zip(tables[1:], sizes, strict=False)]
    return cls(
        log_probs=tuple(np.asarray(table[2], np.float32) for table in tables),
        backoffs=tuple(np.asarray(table[3], np.float32) for table in tables[:-1]),
        tokens=tuple(np.asarray(table[1], np.int32) for table in tables[1:]), starts=tuple(starts))


def check(params, *, order, vocab_size, where):
  """Errors unless `params['ngrams']` is an `NgramModel` of that order and vocabulary."""
  if 'ngrams' not in params:
    raise errors.ParamError(what='params of the pair', where=where, got=sorted(params), expected="the key 'ngrams'")
  model = params['ngrams']
  if not isinstance(model, NgramModel):
    raise errors.ParamError(what="params['ngrams']", where=where, got=type(model).__name__, expected='an NgramModel')
  if model.order != order:
    raise errors.ParamError(what='order', where=where, got=order, expected=f"{model.order}, that of params['ngrams']")
  if model.vocab_size != vocab_size:
    raise errors.VocabError(
        what="the n-gram model's vocabulary", where=where, got=model.vocab_size, expected=f"the target's {vocab_size}",
        fix='train the n-grams on tokens of the same tokenizer')


def history(model, recent):
  """The history of a text, a tuple of n int32[...]; its latest tokens are `recent` int32[..., n - 1], -1 before its start."""
  entries = [jnp.zeros(recent.shape[:-1], jnp.int32)]
  for length in range(1, model.order):
    suffix = recent[..., recent.shape[-1] - length:]
    entry = suffix[..., 0]
    for order in range(1, length):
      entry = continuation(model, order, entry, suffix[..., order])
    entries.append(entry)
  return tuple(entries)


def continuation(model, order, entry, token):
  """int32[...], the entry of order `order` + 1 (static) that continues `entry` int32[...] with `token` int32[...], or -1."""
  entry, token = jnp.broadcast_arrays(entry, token)
  tokens, starts = jnp.asarray(model.tokens[order - 1]), jnp.asarray(model.starts[order - 1])
  if tokens.shape[0] == 0:
    return jnp.full_like(entry, -1)
  seen = jnp.maximum(entry, 0)
  low = jnp.where(entry >= 0, starts[seen], 0)
  end = jnp.where(entry >= 0, starts[seen + 1], 0)

  # As many turns as the longest list of continuations needs, not as the whole order would: most lists are short.
  def is_open(bounds):
    return jnp.any(bounds[0] < bounds[1])

  def halve(bounds):
    low, high = bounds
    middle = (low + high) // 2
    is_left = tokens[middle] < token
    low, high = jnp.where(is_left & (low < high), middle + 1, low), jnp.where(is_left, high, jnp.minimum(middle, high))
    return low, high

  at, _ = lax.while_loop(is_open, halve, (low, end))
  found = (at < end) & (tokens[jnp.minimum(at, tokens.shape[0] - 1)] == token)
  return jnp.where(found, at, -1)


def score(model, entries, token):
  """(log P of `token` int32[...] behind a history, float[...]; the history with it).

  The members of `entries` and `token` have as many axes, and are broadcast.
  """
  log_prob, found = _score_up_to(model.order, model, entries, token)
  return log_prob, (entries[0], *found[:model.order - 1])


def _score_up_to(highest, model, entries, token):
  """(log P by the n-grams of orders 1 .. `highest`; the entries that end in `token`, of each of these orders)."""
  found, log_prob = [token], jnp.asarray(model.log_probs[0])[token]
  for order in range(1, highest):
    entry = continuation(model, order, entries[order], token)
    found.append(entry)
    log_probs = jnp.asarray(model.log_probs[order])
    log_prob = log_prob + backoff(model, order, entries[order])
    if log_probs.shape[0]:
      log_prob = jnp.where(entry >= 0, log_probs[jnp.maximum(entry, 0)], log_prob)
  return log_prob, found


def backoff(model, order, entry):
  """float[...], the back-off weight of `entry` int32[...] of order `order` (static), 0 where it was never seen."""
  weights = jnp.asarray(model.backoffs[order - 1])
  if weights.shape[0] == 0:
    return jnp.zeros(entry.shape, weights.dtype)
  return jnp.where(entry >= 0, weights[jnp.maximum(entry, 0)], 0)


def law(model, entries):
  """float[V], log P of every token behind a history; *unbatched*: members of `entries` are int32[]."""
  log_probs = jnp.asarray(model.log_probs[0])
  for order in range(1, model.order):
    entry = jnp.maximum(entries[order], 0)
    is_seen = entries[order] >= 0
    log_probs = log_probs + backoff(model, order, entries[order])
    if model.tokens[order - 1].shape[0]:
      start, end = (jnp.where(is_seen, jnp.asarray(model.starts[order - 1])[entry + i], 0) for i in (0, 1))
      log_probs = _overwritten(log_probs, model, order, start, end)
  return log_probs


def _overwritten(log_probs, model, order, start, end, *, chunk=128):
  """`log_probs` float[V] with the entries start .. end of order `order` + 1 written over it."""
  tokens, values = jnp.asarray(model.tokens[order - 1]), jnp.asarray(model.log_probs[order])
  offsets = jnp.arange(chunk, dtype=jnp.int32)

  def write(carry):
    log_probs, at = carry
    index = at + offsets
    source = jnp.minimum(index, tokens.shape[0] - 1)
    token = jnp.where(index < end, tokens[source], log_probs.shape[0])
    return log_probs.at[token].set(values[source], mode='drop'), at + chunk

  return lax.while_loop(lambda carry: carry[1] < end, write, (log_probs, start))[0]


def lattice_log_probs(model, candidates, recent):
  """float[B, K, k^(n-1), k], log P of every candidate behind every combination of the n - 1 candidates before it.

  A combination is a number in base k, its oldest candidate first. Where it reaches back behind the lattice the text stands
  in, and the digit does not matter.

  Args:
    model: of order n.
    candidates: int32[B, K, k], K places.
    recent: int32[B, n - 1], the latest tokens of the text, -1 before its start.
  """
  batch, num_places, num_candidates = candidates.shape
  span = model.order - 1
  # One axis per token of a combination. An entry of few tokens has size 1 along those it does not reach back to: entries of
  # lower order are looked up once, not once for every longer history that ends in them.
  ones = (1,) * span
  entries = tuple(entry.reshape(batch, *ones) for entry in history(model, recent))

  def step(entries, tokens):
    log_probs, ahead = _score_up_to(
        max(span, 1), model, tuple(entry[..., None] for entry in entries), tokens.reshape(batch, *ones, num_candidates))
    if span:
      shape = (*entries[span].shape, num_candidates)
      log_probs = jnp.broadcast_to(log_probs + backoff(model, span, entries[span])[..., None], shape)
      log_probs = _with_highest_order(
          model, entries[span].reshape(batch, -1), tokens, log_probs.reshape(batch, -1, num_candidates)).reshape(shape)
    full = jnp.broadcast_to(log_probs, (batch, *(num_candidates,) * (span + 1)))
    return (entries[0], *(entry[:, 0] for entry in ahead[:span])), full.reshape(batch, -1, num_candidates)

  rows = []
  for place in range(min(span, num_places)):
    entries, row = step(entries, candidates[:, place])
    rows.append(row[None])
  if num_places > span:
    rows.append(lax.scan(step, entries, jnp.swapaxes(candidates[:, span:], 0, 1))[1])
  return jnp.swapaxes(jnp.concatenate(rows), 0, 1)


def _with_highest_order(model, entries, tokens, log_probs, *, chunk=128):
  """`log_probs` float[B, E, k] of `tokens` int32[B, k] behind `entries` int32[B, E], with the n-grams of highest order in it.

  Of the k^(n-1) histories of a lattice few were ever seen: those are gathered and looked up, some at a time.
  """
  order = model.order - 1
  if model.tokens[order - 1].shape[0] == 0:
    return log_probs
  _, num_entries, num_candidates = log_probs.shape
  entries, log_probs, shape = entries.reshape(-1), log_probs.reshape(-1, num_candidates), log_probs.shape
  total, is_seen = entries.shape[0], entries >= 0
  chunk = min(chunk, total)
  seen = jnp.nonzero(is_seen, size=total, fill_value=total)[0].astype(jnp.int32)
  seen = jnp.pad(seen, (0, -total % chunk), constant_values=total)
  highest = jnp.asarray(model.log_probs[order])

  def look_up(carry):
    at, log_probs = carry
    chosen = lax.dynamic_slice(seen, (at,), (chunk,))
    history = jnp.minimum(chosen, total - 1)
    entry = continuation(
        model, order, jnp.where(chosen < total, entries[history], -1)[:, None], tokens[history // num_entries])
    values = jnp.where(entry >= 0, highest[jnp.maximum(entry, 0)], log_probs[history])
    return at + chunk, log_probs.at[chosen].set(values, mode='drop')

  num_seen = jnp.sum(is_seen, dtype=jnp.int32)
  return lax.while_loop(lambda carry: carry[0] < num_seen, look_up, (jnp.int32(0), log_probs))[1].reshape(shape)
