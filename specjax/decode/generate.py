"""`generate`: prompts in, texts out. Everything is checked here, on the host, before anything compiles."""

import dataclasses
from typing import Any

import jax
import numpy as np

from specjax.core import checks
from specjax.core import errors
from specjax.core import types
from specjax.decode import inputs
from specjax.decode import memory
from specjax.decode import methods
from specjax.decode import run
from specjax.decode import stops

PROMPT_BUCKET = 32
ROUNDS_BETWEEN_SEARCHES = 16


@dataclasses.dataclass(frozen=True)
class DecodeResult:
  """What was generated, one entry per (prompt, sample), prompts outermost. All on the host.

  Attributes:
    prompt_index, sample_index: int64[N].
    tokens: list of int32 arrays, the generated tokens, EOS and stop sequences included; and what was decoded behind a
      stop string before it was found.
    length: int64[N].
    status: list of `Status`.
    text: list of decoded strings, up to an EOS, a stop sequence or a stop string; None when the pair has no tokenizer.
    log_probs: list of float arrays, the target's own log-probability of each token (temperature 1, no bias), nats.
    stats: `DecodeStats` of int64[N] and int64[N, K].
    record: what the method's recorder kept, arrays of N rows; None without one.
  """

  prompt_index: np.ndarray
  sample_index: np.ndarray
  tokens: list[np.ndarray]
  length: np.ndarray
  status: list[types.Status]
  text: list[str] | None
  log_probs: list[np.ndarray] | None
  stats: types.DecodeStats
  record: Any = None


def generate(
    pair, prompts, *, method, sampling, max_new_tokens, seed, num_samples=1, batch_size=8, example_ids=None, eos_ids=None,
    stop_sequences=(), stop_strings=(),
):
  """`DecodeResult` of decoding every prompt.

  Args:
    pair: target, drafter, parameters and tokenizer (see `specjax.load_pair`).
    prompts: texts, or lists of token ids. For an encoder-decoder they are the encoder's input.
    method: a decoder (`specjax.speculative`, `specjax.autoregressive`) or a function of the pair that returns one.
    sampling: `SamplingParams`, or one per prompt.
    max_new_tokens: int, or one per prompt; 0 gives an empty output.
    seed: in [0, 2^32), or one per prompt.
    num_samples: samples per prompt.
    batch_size: rows decoded together; the last batch is filled with inert rows.
    example_ids: what addresses each prompt's random numbers, in [0, 2^32) or strings, no two equal; the default is its
      index.
    eos_ids: token ids that end a row; the default is the tokenizer's EOS, () is none.
    stop_sequences: lists of token ids; a row ends behind the first one among its generated tokens, exactly, on the device.
    stop_strings: texts; a row ends where the first one stands in its text. Looked for on the host every 16 rounds: the
      tokens decoded until then stay in `tokens` and in the counters. Both kinds give the status STOP.

  Raises:
    ParamError, LimitError, PromptError, VocabError: before compilation. LogitsError: a model produced NaN; raised behind
      the batch, with the `DecodeResult` of all that was decoded as its attribute `partial`.
  """
  batches = plan(
      pair, prompts, method=method, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed, num_samples=num_samples,
      batch_size=batch_size, example_ids=example_ids, eos_ids=eos_ids, stop_sequences=stop_sequences,
      stop_strings=stop_strings)
  collected = []
  for requests in batches.requests:
    state = run.prefill(batches.decoder, pair.params, requests, capacity=batches.capacity)
    collected.append(_decode(batches, pair, state))
    broken = _broken_rows(collected[-1], batches.example_names[len(collected) * batch_size - batch_size:])
    if broken is not None:
      broken.partial = batches.result(collected, pair)
      raise broken
  return batches.result(collected, pair)


def _decode(batches, pair, state):
  """`run.Collected` of a batch decoded to the end; rows with a stop string in their text are stopped on the way."""
  decoder, most = batches.decoder, batches.decoder.num_phases * batches.capacity
  chunk = ROUNDS_BETWEEN_SEARCHES if batches.stop_strings else most
  for _ in range(0, most, chunk):
    state = run.decode(decoder, pair.params, state, max_steps=chunk)
    found = run.collect(state)
    stopped = np.array([batches.has_stop_string(pair.tokenizer, generated(found, row)) for row in range(len(found.length))])
    running = found.status == types.Status.RUNNING
    if chunk == most or not np.any(running & ~stopped):
      break
    if np.any(running & stopped):
      state = run.finish(state, running & stopped)
  # Also where the row went on to an EOS, the limit or a broken law before anybody looked.
  return found._replace(status=np.where(stopped, types.Status.STOP, found.status))


def stream(
    pair, prompts, *, method, sampling, max_new_tokens, seed, steps_per_chunk=4, example_ids=None, eos_ids=None,
    stop_sequences=(),
):
  """An iterator over lists with the new token ids of each prompt (int32 arrays), one list per `steps_per_chunk` rounds.

  One batch with all prompts; arguments as in `generate`. The concatenated chunks equal the tokens `generate` returns for
  the same batch. Arguments are checked at the call; LogitsError comes behind the last chunk.
  """
  checks.integer('steps_per_chunk', steps_per_chunk, low=1, high=checks.MAX_NEW_TOKENS)
  inputs.check_prompts(prompts)
  batches = plan(
      pair, prompts, method=method, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed, num_samples=1,
      batch_size=len(prompts), example_ids=example_ids, eos_ids=eos_ids, stop_sequences=stop_sequences)
  if batches.decoder.num_phases > 1:
    raise errors.ParamError(
        what='method of a stream', got=type(batches.decoder).__name__, expected='a decoder that takes no token back',
        fix='use generate: a sequence cascade may replace the whole answer')
  return _chunks(batches, pair, steps_per_chunk)


def _chunks(batches, pair, steps_per_chunk):
  state = run.prefill(batches.decoder, pair.params, batches.requests[0], capacity=batches.capacity)
  seen = run.collect(state).prompt_length
  while True:
    state = run.decode(batches.decoder, pair.params, state, max_steps=steps_per_chunk)
    now = run.collect(state)
    yield [row[start:stop].copy() for row, start, stop in zip(now.tokens, seen, now.length)]
    seen = now.length
    if not (now.status == types.Status.RUNNING).any():
      broken = _broken_rows(now, batches.example_names)
      if broken is not None:
        raise broken
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
  stop_sequences: tuple[tuple[int, ...], ...]
  stop_strings: tuple[str, ...]
  example_names: list[str]

  def result(self, collected, pair):
    """`DecodeResult` of the collected batches, which may be the first ones alone."""
    count = min(len(self.prompt_index), sum(len(batch.length) for batch in collected))
    rows = [(batch, i) for batch in collected for i in range(len(batch.length))][:count]
    merged = run.Collected(*(_concatenate([getattr(batch, name) for batch in collected], count)
                             for name in run.Collected._fields[:5]), stats=_merge_stats(collected, count), record=None)
    tokens = [generated(batch, i) for batch, i in rows]
    text = None if pair.tokenizer is None else [
        self._text(pair.tokenizer, row, status) for row, status in zip(tokens, merged.status)]
    has_log_probs = merged.log_probs is not None
    return DecodeResult(
        prompt_index=self.prompt_index[:count],
        sample_index=self.sample_index[:count],
        tokens=tokens,
        length=np.array([len(row) for row in tokens], np.int64),
        status=[types.Status(int(s)) for s in merged.status],
        text=text,
        log_probs=[generated(batch, i, 'log_probs') for batch, i in rows] if has_log_probs else None,
        stats=merged.stats,
        record=jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *(batch.record for batch in collected)),
    )

  def has_stop_string(self, tokenizer, tokens):
    """Whether one of the stop strings stands in the text of generated tokens."""
    return bool(self.stop_strings) and stops.find_string(
        decode_text(tokenizer, tokens, self.eos_ids), self.stop_strings) is not None

  def _text(self, tokenizer, tokens, status):
    """The text of a row up to where it stopped."""
    if status == types.Status.STOP:
      tokens = stops.without_sequence(tokens, self.stop_sequences)
    text = decode_text(tokenizer, tokens, self.eos_ids)
    return text[:stops.find_string(text, self.stop_strings)]


def generated(batch, row, name='tokens'):
  """What one row of a `run.Collected` generated: its part of the array `name` behind the prompt, copied."""
  return getattr(batch, name)[row, batch.prompt_length[row]:batch.length[row]].copy()


def plan(
    pair, prompts, *, method, sampling, max_new_tokens, seed, num_samples=1, batch_size=8, example_ids=None, eos_ids=None,
    stop_sequences=(), stop_strings=()):
  """`Batches` for these prompts: all checks, then arrays padded to shared shapes. Arguments as of `generate`."""
  decoder = inputs.decoder(method, pair)
  inputs.check_prompts(prompts)
  count = len(prompts)
  checks.matching_vocabularies(pair.drafter.vocab_size, pair.target.vocab_size)
  samplings = inputs.per_prompt('sampling', sampling, count, inputs.sampling)
  if getattr(decoder, 'rule', None) is not None:  # a decoder that routes has none
    for params in samplings:
      methods.check_sampling(decoder.rule, params)
  checks.integer('num_samples', num_samples, low=1, high=checks.MAX_SAMPLES)
  checks.integer('batch_size', batch_size, low=1, high=checks.MAX_SAMPLES)
  seeds = inputs.per_prompt('seed', seed, count, checks.seed)
  names = inputs.example_names(example_ids, count)
  ids = [inputs.encode(pair, prompt, name) for prompt, name in zip(prompts, names)]
  limits = inputs.per_prompt('max_new_tokens', max_new_tokens, count, checks.max_new_tokens)
  inputs.check_length(pair, lengths=list(map(len, ids)), limits=limits, names=names)
  eos = inputs.eos_ids(pair, eos_ids)
  sequences = stops.check_sequences(stop_sequences, pair.target.vocab_size)
  strings = stops.check_strings(stop_strings, pair.tokenizer)
  if strings and decoder.num_phases > 1:
    raise errors.ParamError(
        what='stop_strings', got=strings, expected='none with a decoder that judges whole answers',
        fix='stop_sequences end an answer on the device, before it is judged')
  prompt_index = np.repeat(np.arange(count), num_samples)
  sample_index = np.tile(np.arange(num_samples), count)
  width = bucket(max(map(len, ids)))
  requests, dtype = [], inputs.law_dtype(pair)
  for start in range(0, len(prompt_index), batch_size):
    rows = prompt_index[start:start + batch_size]
    requests.append(build_requests(
        [ids[r] for r in rows], family=pair.family, width=width, batch_size=batch_size,
        sampling=[samplings[r] for r in rows], max_new_tokens=[limits[r] for r in rows], eos_ids=eos,
        stop_sequences=sequences, seed=[seeds[r] for r in rows],
        example_id=[inputs.example_address(names[r]) for r in rows], sample_index=sample_index[start:start + batch_size],
        vocab_size=pair.target.vocab_size, start_token=getattr(pair, 'start_token', 0), dtype=dtype))
  prompt_width = width if pair.family == 'decoder-only' else 1
  capacity = prompt_width + bucket(max(limits)) + decoder.slack
  memory.check_fits(
      memory.batch_bytes(decoder, pair.params, requests[0], capacity=capacity), available=memory.available_bytes(),
      where=f'batch_size {batch_size}')
  return Batches(
      decoder=decoder, requests=requests, capacity=capacity, prompt_index=prompt_index, sample_index=sample_index,
      eos_ids=eos, stop_sequences=sequences, stop_strings=strings, example_names=[str(names[r]) for r in prompt_index])


def build_requests(
    ids, *, family, width, batch_size, sampling, max_new_tokens, eos_ids, seed, example_id, sample_index, vocab_size,
    start_token=0, stop_sequences=(), dtype=np.float32, may_truncate=True,
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
    stop_sequences: tuple of tuples of token ids, shared by the rows.
    dtype: of the sampling parameters: that of the laws they shape.
    may_truncate: False makes the smaller program of batches without top-k, top-p and min-p; another one compiles when they
      come. An error where a request has one.
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
      sampling=_sampling_arrays(sampling, pad, vocab_size, dtype, may_truncate),
      max_new_tokens=row(max_new_tokens, np.int32),
      eos_ids=np.tile(np.array(eos_ids or (-1,), np.int32), (batch_size, 1)),
      seed=row(seed, np.uint32),
      example_id=row(example_id, np.uint32),
      sample_index=row(sample_index, np.uint32),
      stop_sequences=stops.as_array(stop_sequences, batch_size),
  )


def bucket(size, multiple=PROMPT_BUCKET):
  """The smallest shape >= size of the form multiple * 2^k or 3 * multiple * 2^k: few executables, little padding."""
  if size <= multiple:
    return multiple
  power = multiple
  while power < size:
    power *= 2
  return 3 * power // 4 if 3 * power // 4 >= size else power


def decode_text(tokenizer, tokens, eos_ids):
  """The text of generated tokens, EOS cut off."""
  return tokenizer.decode([int(t) for t in tokens if int(t) not in eos_ids])


def _sampling_arrays(sampling, pad, vocab_size, dtype, may_truncate):
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
  filters = {}
  if may_truncate:
    filters = dict(top_k=column('top_k', np.int32, 0), top_p=column('top_p', dtype, 1), min_p=column('min_p', dtype, 0))
  elif any(params.truncates for params in sampling):
    raise errors.ParamError(
        what='top_k, top_p or min_p of a request', got=next(params for params in sampling if params.truncates),
        expected='none with may_truncate=False')
  return types.Sampling(
      temperature=column('temperature', dtype, 0), logit_bias=bias, allowed_tokens=allowed, **filters)


def _concatenate(arrays, count):
  return None if arrays[0] is None else np.concatenate(arrays)[:count]


def _merge_stats(collected, count):
  fields = [f.name for f in dataclasses.fields(types.DecodeStats)]
  return types.DecodeStats(**{
      name: np.concatenate([getattr(batch.stats, name) for batch in collected])[:count] for name in fields})


def _broken_rows(collected, names):
  """`LogitsError` that names the first of the `collected` rows whose laws broke, or None."""
  blamed = ((types.Status.NONFINITE, 'target'), (types.Status.NONFINITE_DRAFTER, 'drafter, or the rule that reads its law,'))
  for status, model in blamed:
    rows = np.flatnonzero(collected.status[:len(names)] == status)
    if rows.size:
      row = int(rows[0])
      step = int(collected.stats.steps[row])
      count = min(len(collected.status), len(names))
      return errors.LogitsError(
          f'the {model} produced logits that are NaN, +inf or all masked: example {names[row]}, step {step} '
          f'({rows.size} of {count} rows); no token was emitted from them',
          what=f'{model} logits', where=f'example {names[row]}, step {step}', got='not finite', expected='finite logits',
          fix='check the checkpoint and its dtype; allowed_tokens must leave a token')
  return None
