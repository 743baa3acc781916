"""Runs points on a real pair: prompts to arrays, one compiled prefill and decode per structure, results on the host.

`evaluate` sees only the methods of `PairRunner`; tests give it a runner without a model.
"""

import functools
import importlib.resources
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from specjax.core import types
from specjax.core.errors import PromptError, SpecjaxError
from specjax.decode import generate
from specjax.decode import memory
from specjax.decode import run
from specjax.decode import speculative
from specjax.evaluation import methods
from specjax.evaluation import provenance
from specjax.evaluation import rows
from specjax.metrics import timing
from specjax.pairs import builtin
from specjax.pairs import loaded
from specjax.rules import lossless
from specjax.tasks import prompts


# Float32 logits nearer than this are equal up to the rounding of programs of different width.
TIE_GAP = 1e-4


class Shape(NamedTuple):
  """What all points of a pair share, so that they share executables: `width` of the prompt buffer, tokens generated at
  most, and slots of a full cache layer."""

  width: int
  max_new_tokens: int
  capacity: int


class PairRunner:
  """One loaded pair.

  Args:
    pair: a `specjax.Pair`.
    checkpoint_sha256: of its weights' files, None when they are not files.
    dtype: of weights and activations, for the record.
    bonus: whose law the token after full acceptance follows.
    force_length: ignore EOS, so that every row generates `max_new_tokens`.
    detail: 'summary' records what the rules did, 'none' nothing.
  """

  def __init__(self, pair, *, checkpoint_sha256, dtype, bonus, force_length, detail='none'):
    self.name = pair.name
    self._pair = pair
    self._checkpoint_sha256 = checkpoint_sha256
    self._dtype = dtype
    self._bonus = bonus
    self._detail = detail
    self._eos_ids = () if force_length else (self._pair.tokenizer.eos_id,)
    self._is_decoder_only = self._pair.family == 'decoder-only'

  @property
  def model_id(self):
    """Drafter and target, for rows."""
    return f'{self.name}-drafter>{self.name}-target'

  def metadata(self):
    """What `run.json` says about the pair."""
    sizes = {role: sum(int(leaf.size) for leaf in jax.tree.leaves(self._pair.params[role]))
             for role in ('target', 'drafter')}
    return {
        'family': self._pair.family, 'dtype': str(self._dtype), 'vocab_size': self._pair.target.vocab_size,
        'parameters': sizes, 'parameter_bytes': {r: memory.tree_bytes(self._pair.params[r]) for r in sizes},
        'tokenizer_sha256': self._pair.tokenizer.sha256, 'checkpoint_sha256': self._checkpoint_sha256,
        'models': {role: repr(getattr(self._pair, role)) for role in sizes},
    }

  def encode(self, example):
    """The token ids that the target is prompted with; of an encoder-decoder the encoder's input."""
    layout = prompts.decoder_only_prompt if self._is_decoder_only else prompts.encoder_tokens
    return tuple(layout(example, self._pair.tokenizer))

  def encode_turn(self, text):
    """The token ids of what is asked in a later turn, without marks."""
    return tuple(self._pair.tokenizer.encode(text))

  def follow_up(self, question, tokens):
    """The question of the next turn, behind the generated `tokens` of this one."""
    prompt = prompts.follow_up(
        question.prompt, tokens, question.turns[question.turn], self._pair.tokenizer, self._pair.family)
    return question._replace(prompt=tuple(prompt), turn=question.turn + 1)

  def text(self, token_ids):
    """The text of generated tokens up to the first EOS."""
    return prompts.answer_text(token_ids, self._pair.tokenizer)

  def shape(self, questions, *, max_new_tokens, points):
    """The `Shape` that holds all `questions`, with room for the widest round of `points`."""
    longest = max(len(question.prompt) + sum(
        max_new_tokens + len(turn) + prompts.FOLLOW_UP_MARKS for turn in question.turns) for question in questions)
    if not all(question.prompt for question in questions):
      raise PromptError(what='empty prompt', where=next(q.id for q in questions if not q.prompt))
    width = generate.bucket(longest)
    in_decoder = width if self._is_decoder_only else 1
    slack = max(self.decoder(point)[0].slack for point in {point.structure: point for point in points}.values())
    return Shape(width, max_new_tokens, in_decoder + max_new_tokens + slack)

  def decoder(self, point):
    """(decoder, params) of a point; the knobs are leaves, so their values do not matter to the executable."""
    return methods.build_decoder(
        self._pair, methods.lookup(point.method), knob=dict(point.knob),
        setting=methods.Setting(point.num_draft_tokens, self._bonus, self._detail))

  def memory_parts(self, point, shape):
    """Name -> bytes that a batch needs beside the parameters (already loaded), without compiling anything."""
    decoder, params = self.decoder(point)
    return memory.batch_bytes(decoder, params, self._requests(point, [], shape), capacity=shape.capacity)

  def step_costs(self, shape):
    """Role -> weight bytes read per pass, flops per token, and cache bytes of one row at full capacity."""
    return {role: self._step_cost(role, shape) for role in ('target', 'drafter')}

  def _step_cost(self, role, shape):
    params, model = self._pair.params[role], getattr(self._pair, role)
    read = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if _is_read(path, params)]
    requests = self._requests(None, [], shape, batch=1)
    cache = jax.eval_shape(lambda p, prompt: model.prefill(p, prompt, shape.capacity)[1], params, requests.prompt)
    return {
        'weight_bytes': memory.tree_bytes(read), 'flops_per_token': 2 * sum(int(leaf.size) for leaf in read),
        'cache_bytes_per_row': memory.tree_bytes(cache), 'capacity': shape.capacity,
    }

  def _requests(self, point, questions, shape, *, batch=None):
    count = len(questions)
    return generate.build_requests(
        [list(question.prompt) for question in questions], family=self._pair.family, width=shape.width,
        batch_size=batch or point.batch, sampling=[point.sampling] * count if count else [],
        max_new_tokens=[shape.max_new_tokens] * count, eos_ids=self._eos_ids,
        seed=[point.seed] * count if count else [], example_id=[question.index for question in questions],
        # A later turn draws other random numbers, also where its rounds start at the same positions (encoder-decoders).
        sample_index=[question.turn for question in questions], vocab_size=self._pair.target.vocab_size,
        start_token=self._pair.tokenizer.pad_id)

  def generate(self, point, questions, shape):
    """`rows.Generation` of one batch; `questions` may be fewer than the batch, the rest is inert rows.

    Raises:
      SpecjaxError: the loop returned with rows still running.
    """
    decoder, params = self.decoder(point)
    requests = jax.device_put(self._requests(point, questions, shape))
    state, prefill_seconds = timing.timed(run.prefill, _before_rounds(decoder), params, requests, capacity=shape.capacity)

    with timing.garbage_collection_off():
      start = time.perf_counter()
      state = jax.block_until_ready(run.decode(
          decoder, params, state, max_steps=decoder.num_phases * shape.max_new_tokens))
      collected = run.collect(state)
      decode_seconds = time.perf_counter() - start
    if (collected.status[:len(questions)] == 0).any():
      raise SpecjaxError(what='rows still running after max_new_tokens rounds', where=point.label)
    return rows.Generation(collected, prefill_seconds, decode_seconds)

  def is_tie(self, question, tokens, other, position, shape):
    """Whether the target cannot tell two greedy outputs apart at the first `position` where they differ.

    Both tokens must be its best up to rounding, by one full pass over prompt and output; only known in float32.
    """
    if str(self._dtype) != 'float32':
      return False
    logits = self._logits_behind(question.prompt, tokens[:position], shape)
    return bool(np.max(logits) - min(logits[tokens[position]], logits[other[position]]) <= TIE_GAP)

  def _logits_behind(self, prompt, generated, shape):
    """float32[V] of the target behind `prompt` and `generated`; everything is padded, so that it compiles once."""
    def padded(tokens, width):
      found = np.zeros((2, 1, width), np.int32)
      found[0, 0, :len(tokens)], found[1, 0, :len(tokens)] = tokens, 1
      return found, np.arange(width, dtype=np.int32)[None]

    encoder, tokens = {}, [*prompt, *generated]
    if not self._is_decoder_only:
      (source, segments), positions = padded(prompt, shape.width)
      encoder = dict(encoder_tokens=source, encoder_positions=positions, encoder_segments=segments)
      tokens = [self._pair.tokenizer.pad_id, *generated]
    (fed, segments), positions = padded(tokens, shape.capacity)
    batch = types.TrainingBatch(
        tokens=fed, targets=fed, weights=np.ones(fed.shape, np.float32), positions=positions, segments=segments, **encoder)
    return np.asarray(self._forward(self._pair.params['target'], batch)[0, len(tokens) - 1])

  @functools.cached_property
  def _forward(self):
    return jax.jit(lambda params, batch: self._pair.target.forward(params, batch).logits)

  def machine(self):
    """The measured `timing.Machine` this process runs on."""
    return timing.measure_machine()

  def compile_log(self):
    """The executables compiled so far by this process, with seconds."""
    return run.compile_log()


def _before_rounds(decoder):
  """A decoder with the same first state for all rules, which makes one executable of their prefills."""
  if isinstance(decoder, speculative.SpeculativeDecoder):
    return decoder.replace(rule=lossless.Lossless(), verifier=speculative.TokenVerifier(), bonus='rule')
  return decoder


def _is_read(path, params):
  """Whether a parameter is read in every decoding pass: not the encoder's, nor the cross-attention's keys and values
  (cached), nor an input table beside a head of its own."""
  names = [str(getattr(key, 'key', key)) for key in path]
  if names[0] == 'encoder' or ('cross_attention' in names and {'key', 'value'} & set(names)):
    return False
  return not ('head' in params and 'embed' in names[0])


def load_runner(name, *, dtype, bonus, force_length, detail, vocabulary='same'):
  """The `PairRunner` of a built-in pair, or of the two checkpoints TARGET::DRAFTER."""
  if loaded.is_named(name):
    pair = loaded.load_named(name, dtype=jnp.dtype(dtype), vocabulary=vocabulary)
    return PairRunner(pair, checkpoint_sha256=None, dtype=dtype, bonus=bonus, force_length=force_length, detail=detail)
  pair = builtin.load_pair(name, dtype=jnp.dtype(dtype))
  with importlib.resources.as_file(importlib.resources.files('specjax.pairs') / 'data' / name) as directory:
    digest = provenance.sha256_of_files(directory.glob('*'))
  return PairRunner(pair, checkpoint_sha256=digest, dtype=dtype, bonus=bonus, force_length=force_length,
                    detail=detail)
