"""`generate`: prompts in, texts out. Everything is checked here, on the host, before anything compiles."""

import dataclasses
import hashlib
from typing import Any, Sequence

import numpy as np

from specjax.core import checks
from specjax.core import errors
from specjax.core import types
from specjax.decode import methods
from specjax.decode import run

PROMPT_BUCKET = 32


@dataclasses.dataclass(frozen=True)
class DecodeResult:
  """What was generated, one entry per (prompt, sample), prompts outermost. All on the host.

  Attributes:
    prompt_index, sample_index: int64[N].
    tokens: list of int32 arrays, the generated tokens, EOS included.
    length: int64[N].
    status: list of `Status`.
    text: list of decoded strings without EOS, or None when the pair has no tokenizer.
    log_probs: list of float arrays, the target's own log-probability of each token (temperature 1, no bias), nats.
    stats: `DecodeStats` of int64[N] and int64[N, K].
  """

  prompt_index: np.ndarray
  sample_index: np.ndarray
  tokens: list[np.ndarray]
  length: np.ndarray
  status: list[types.Status]
  text: list[str] | None
  log_probs: list[np.ndarray] | None
  stats: types.DecodeStats


def generate(
    pair, prompts, *, method, sampling, max_new_tokens, seed, num_samples=1, batch_size=8, example_ids=None, eos_ids=None,
):
  """`DecodeResult` of decoding every prompt.

  Args:
    pair: target, drafter, parameters and tokenizer (see `specjax.load_pair`).
    prompts: texts, or lists of token ids. For an encoder-decoder they are the encoder's input.
    method: a decoder (`specjax.speculative`, `specjax.autoregressive`) or a function of the pair that returns one.
    sampling: `SamplingParams`.
    max_new_tokens: int, or one per prompt; 0 gives an empty output.
    seed: in [0, 2^32).
    num_samples: samples per prompt.
    batch_size: rows decoded together; the last batch is filled with inert rows.
    example_ids: what addresses each prompt's random numbers, in [0, 2^32) or strings; the default is its index.
    eos_ids: token ids that end a row; the default is the tokenizer's EOS, () is none.

  Raises:
    ParamError, LimitError, PromptError, VocabError: before compilation. LogitsError: a model produced NaN.
  """
  batches = plan(
      pair, prompts, method=method, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed, num_samples=num_samples,
      batch_size=batch_size, example_ids=example_ids, eos_ids=eos_ids)
  collected = []
  for requests in batches.requests:
    state = run.prefill(batches.decoder, pair.params, requests, capacity=batches.capacity)
    state = run.decode(batches.decoder, pair.params, state, max_steps=batches.capacity)
    collected.append(run.collect(state))
  return batches.result(collected, pair)


def stream(
    pair, prompts, *, method, sampling, max_new_tokens, seed, steps_per_chunk=4, example_ids=None, eos_ids=None,
):
  """Yields, after every `steps_per_chunk` rounds, a list with the new token ids of each prompt (int32 arrays).

  One batch with all prompts; arguments as in `generate`. The concatenated chunks equal the tokens `generate` returns for
  the same batch.
  """
  checks.integer('steps_per_chunk', steps_per_chunk, low=1, high=checks.MAX_NEW_TOKENS)
  batches = plan(
      pair, prompts, method=method, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed, num_samples=1,
      batch_size=len(prompts), example_ids=example_ids, eos_ids=eos_ids)
  state = run.prefill(batches.decoder, pair.params, batches.requests[0], capacity=batches.capacity)
  seen = run.collect(state).prompt_length
  while True:
    state = run.decode(batches.decoder, pair.params, state, max_steps=steps_per_chunk)
    now = run.collect(state)
    yield [row[start:stop].copy() for row, start, stop in zip(now.tokens, seen, now.length)]
    seen = now.length
    if not (now.status == types.Status.RUNNING).any():
      _raise_for_broken_rows(now, batches.example_names)
      return


@dataclasses.dataclass(frozen=True)
class Batches:
  """Checked work: the decoder, the batches as arrays, and how to read the results back."""

  decoder: Any
  requests: list[types.Requests]
  capacity: int
  prompt_index: np.ndarray
  sample_index: np.ndarray
  eos_ids: tuple[int, ...]
  example_names: list[str]

  def result(self, collected, pair):
    """`DecodeResult` of the collected batches; `LogitsError` if a row broke."""
    count = len(self.prompt_index)
    rows = [(batch, i) for batch in collected for i in range(len(batch.length))][:count]
    merged = run.Collected(*(_concatenate([getattr(batch, name) for batch in collected], count)
                             for name in run.Collected._fields[:5]), stats=_merge_stats(collected, count), record=None)
    _raise_for_broken_rows(merged, self.example_names)
    cut = lambda array, batch, i: array[i, batch.prompt_length[i]:batch.length[i]].copy()
    tokens = [cut(batch.tokens, batch, i) for batch, i in rows]
    has_log_probs = merged.log_probs is not None
    return DecodeResult(
        prompt_index=self.prompt_index,
        sample_index=self.sample_index,
        tokens=tokens,
        length=np.array([len(row) for row in tokens], np.int64),
        status=[types.Status(int(s)) for s in merged.status],
        text=None if pair.tokenizer is None else [decode_text(pair.tokenizer, row, self.eos_ids) for row in tokens],
        log_probs=[cut(batch.log_probs, batch, i) for batch, i in rows] if has_log_probs else None,
        stats=merged.stats,
    )


def plan(pair, prompts, *, method, sampling, max_new_tokens, seed, num_samples, batch_size, example_ids, eos_ids):
  """`Batches` for these prompts: all checks, then arrays padded to shared shapes."""
  decoder = method(pair) if callable(method) else method
  checks.matching_vocabularies(pair.drafter.vocab_size, pair.target.vocab_size)
  if getattr(decoder, 'rule', None) is not None:  # a decoder that routes has none
    methods.check_sampling(decoder.rule, sampling)
  checks.integer('num_samples', num_samples, low=1, high=checks.MAX_SAMPLES)
  checks.integer('batch_size', batch_size, low=1, high=checks.MAX_SAMPLES)
  seed = checks.seed(seed)
  if not len(prompts):
    raise errors.PromptError(what='prompts', got=0, expected='at least one prompt')
  names = [str(i) for i in range(len(prompts))] if example_ids is None else [str(name) for name in example_ids]
  addresses = [example_address(i if example_ids is None else example_ids[i]) for i in range(len(prompts))]
  ids = [_encode(pair, prompt, name) for prompt, name in zip(prompts, names)]
  limits = _limits(max_new_tokens, len(prompts))
  eos = _eos(pair, eos_ids)
  prompt_index = np.repeat(np.arange(len(prompts)), num_samples)
  sample_index = np.tile(np.arange(num_samples), len(prompts))
  width = bucket(max(map(len, ids)))
  requests = []
  for start in range(0, len(prompt_index), batch_size):
    rows = prompt_index[start:start + batch_size]
    requests.append(build_requests(
        [ids[r] for r in rows], family=pair.family, width=width, batch_size=batch_size, sampling=[sampling] * len(rows),
        max_new_tokens=[limits[r] for r in rows], eos_ids=eos, seed=[seed] * len(rows),
        example_id=[addresses[r] for r in rows], sample_index=sample_index[start:start + batch_size],
        vocab_size=pair.target.vocab_size, start_token=getattr(pair, 'start_token', 0)))
  prompt_width = width if pair.family == 'decoder-only' else 1
  return Batches(
      decoder=decoder, requests=requests, capacity=prompt_width + bucket(max(limits)) + decoder.slack,
      prompt_index=prompt_index, sample_index=sample_index, eos_ids=eos,
      example_names=[names[r] for r in prompt_index])


def build_requests(
    ids, *, family, width, batch_size, sampling, max_new_tokens, eos_ids, seed, example_id, sample_index, vocab_size,
    start_token=0, dtype=np.float32,
):
  """`Requests` of one batch of token-id prompts, padded to `batch_size` rows (inert) and `width` tokens.

  Args:
    ids: list of token-id lists; for family 'encoder-decoder' the encoder's input.
    family: 'decoder-only' or 'encoder-decoder'.
    width: prompt buffer; every prompt must fit.
    sampling: one `SamplingParams` per row.
    max_new_tokens, seed, example_id, sample_index: one per row.
    eos_ids: tuple shared by the rows.
    vocab_size: V, for the bias and mask arrays.
    start_token: decoder start token of an encoder-decoder.
  """
  for row, tokens in enumerate(ids):
    if len(tokens) > width:
      raise errors.PromptError(
          what='prompt', where=f'row {row}', got=f'{len(tokens)} tokens', expected=f'at most {width}',
          fix='shorten it, or raise the prompt limit')
    checks.token_ids(tokens, vocab_size, where=f'row {row}')
  pad = batch_size - len(ids)
  tokens = np.zeros((batch_size, width), np.int32)
  for row, prompt in enumerate(ids):
    tokens[row, :len(prompt)] = prompt
  length = np.array([len(prompt) for prompt in ids] + [1] * pad, np.int32)
  if family == 'encoder-decoder':
    start = np.full((batch_size, 1), start_token, np.int32)
    prompt = types.Prompt(start, np.ones(batch_size, np.int32), tokens, length)
  else:
    prompt = types.Prompt(tokens, length)
  row = lambda values, kind, fill=0: np.array(list(values) + [fill] * pad, kind)
  return types.Requests(
      prompt=prompt,
      sampling=_sampling_arrays(sampling, pad, vocab_size, dtype),
      max_new_tokens=row(max_new_tokens, np.int32),
      eos_ids=np.tile(np.array(eos_ids or (-1,), np.int32), (batch_size, 1)),
      seed=row(seed, np.uint32),
      example_id=row(example_id, np.uint32),
      sample_index=row(sample_index, np.uint32),
  )


def bucket(size, multiple=PROMPT_BUCKET):
  """The smallest shape >= size of the form multiple * 2^k or 3 * multiple * 2^k: few executables, little padding."""
  if size <= multiple:
    return multiple
  power = multiple
  while power < size:
    power *= 2
  return 3 * power // 4 if 3 * power // 4 >= size else power


def example_address(name):
  """uint32 address of an example: integers are themselves, strings are hashed."""
  if isinstance(name, str):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], 'big')
  return checks.integer('example_id', name, low=0, high=2**32 - 1, over=errors.ParamError)


def decode_text(tokenizer, tokens, eos_ids):
  """The text of generated tokens, EOS cut off."""
  return tokenizer.decode([int(t) for t in tokens if int(t) not in eos_ids])


def _sampling_arrays(sampling, pad, vocab_size, dtype):
  column = lambda name, kind, fill: np.array([getattr(s, name) for s in sampling] + [fill] * pad, kind)
  bias = allowed = None
  if any(s.logit_bias for s in sampling):
    bias = np.zeros((len(sampling) + pad, vocab_size), dtype)
    for row, params in enumerate(sampling):
      for token, value in (params.logit_bias or {}).items():
        checks.token_ids([token], vocab_size, what='logit_bias token id')
        bias[row, token] = value
  if any(s.allowed_tokens is not None for s in sampling):
    allowed = np.ones((len(sampling) + pad, vocab_size), bool)
    for row, params in enumerate(sampling):
      if params.allowed_tokens is not None:
        checks.token_ids(list(params.allowed_tokens), vocab_size, what='allowed token id')
        allowed[row] = False
        allowed[row, list(params.allowed_tokens)] = True
  return types.Sampling(
      temperature=column('temperature', dtype, 0), top_k=column('top_k', np.int32, 0), top_p=column('top_p', dtype, 1),
      min_p=column('min_p', dtype, 0), logit_bias=bias, allowed_tokens=allowed)


def _encode(pair, prompt, name):
  if isinstance(prompt, str):
    if pair.tokenizer is None:
      raise errors.PromptError(what='text prompt', where=f'example {name}', got='str', expected='token ids',
                               fix='this pair has no tokenizer')
    prompt = pair.encode_prompt(prompt)
  prompt = [int(t) for t in prompt] if _is_integers(prompt) else prompt
  if not len(prompt):
    raise errors.PromptError(what='prompt', where=f'example {name}', got='no tokens', expected='at least one token')
  if len(prompt) > checks.MAX_PROMPT_TOKENS:
    raise errors.LimitError(what='prompt tokens', where=f'example {name}', got=len(prompt),
                            expected=f'at most {checks.MAX_PROMPT_TOKENS}')
  checks.token_ids(prompt, pair.target.vocab_size, where=f'example {name}')
  return prompt


def _is_integers(prompt):
  return np.issubdtype(np.asarray(prompt).dtype, np.integer)


def _limits(max_new_tokens, count):
  per_prompt = list(max_new_tokens) if isinstance(max_new_tokens, Sequence | np.ndarray) else [max_new_tokens] * count
  if len(per_prompt) != count:
    raise errors.ParamError(what='max_new_tokens', got=f'{len(per_prompt)} values', expected=f'one, or {count}')
  return [checks.max_new_tokens(value) for value in per_prompt]


def _eos(pair, eos_ids):
  if eos_ids is None:
    return (pair.tokenizer.eos_id,) if pair.tokenizer is not None else ()
  checks.token_ids(list(eos_ids), pair.target.vocab_size, what='eos id')
  return tuple(int(token) for token in eos_ids)


def _concatenate(arrays, count):
  return None if arrays[0] is None else np.concatenate(_same_width(arrays))[:count]


def _same_width(arrays):
  return [np.asarray(array) for array in arrays]


def _merge_stats(collected, count):
  fields = [f.name for f in dataclasses.fields(types.DecodeStats)]
  return types.DecodeStats(**{
      name: np.concatenate([getattr(batch.stats, name) for batch in collected])[:count] for name in fields})


def _raise_for_broken_rows(collected, names):
  for status, model in ((types.Status.NONFINITE, 'target'), (types.Status.NONFINITE_DRAFTER, 'drafter')):
    rows = np.flatnonzero(collected.status[:len(names)] == status)
    if rows.size:
      row = int(rows[0])
      step = int(collected.stats.steps[row])
      raise errors.LogitsError(
          f'the {model} produced logits that are NaN, +inf or all masked: example {names[row]}, step {step} '
          f'({rows.size} of {len(names)} rows); no token was emitted from them',
          what=f'{model} logits', where=f'example {names[row]}, step {step}', got='not finite', expected='finite logits',
          fix='check the checkpoint and its dtype; allowed_tokens must leave a token')
