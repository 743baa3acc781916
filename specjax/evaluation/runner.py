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
from specjax.core.errors import ConfigError, PromptError, SpecjaxError
from specjax.decode import generate
from specjax.decode import inputs
from specjax.decode import memory
from specjax.decode import run
from specjax.decode import speculative
from specjax.evaluation import drafting
from specjax.evaluation import methods
from specjax.evaluation import parts
from specjax.evaluation import provenance
from specjax.evaluation import rows
from specjax.evaluation import sharing
from specjax.metrics import timing
from specjax.pairs import builtin
from specjax.pairs import loaded
from specjax.rules import lossless
from specjax.tasks import answer_ends
from specjax.tasks import example as example_lib
from specjax.tasks import framing
from specjax.tasks import prompts


# Float32 logits nearer than this are equal up to the rounding of programs of different width.
TIE_GAP = 1e-4


class Shape(NamedTuple):
  """What all points of a pair share, so that they share executables.

  Attributes:
    width: of the prompt buffer, tokens.
    max_new_tokens: tokens generated at most.
    capacity: slots of a full cache layer.
    stops: how many token sequences end an answer, at most, and tokens of the longest.
    may_truncate: whether any point has top-k, top-p or min-p.
  """

  width: int
  max_new_tokens: int
  capacity: int
  stops: tuple[int, int] = (0, 0)
  may_truncate: bool = True


class Likelihood(NamedTuple):
  """What a model says of a reference, given its prompt, at temperature 1.

  Attributes:
    log_prob: of the reference, nats.
    num_tokens, num_bytes: its length.
    is_best: whether each of its tokens is the likeliest.
  """

  log_prob: float
  num_tokens: int
  num_bytes: int
  is_best: bool


class PairRunner:
  """One loaded pair.

  Args:
    pair: a `specjax.Pair`.
    checkpoint_sha256: of its weights' files, None when they are not files.
    dtype: of weights and activations, for the record.
    bonus: whose law the token after full acceptance follows.
    force_length: ignore EOS, so that every row generates `max_new_tokens`.
    detail: 'summary' records what the rules did, 'none' nothing.
    chat_template: how questions are put, 'none' or a key of `framing.TEMPLATES`.
    load_part: (role, pair) -> (network, parameters) of a part that a method needs beside the two models, None where there
      is none.
    together: names of methods that share an executable where only their rules differ.
  """

  def __init__(self, pair, *, checkpoint_sha256, dtype, bonus, force_length, detail='none', chat_template='none',
               load_part=lambda role, pair: None, together=()):
    self.name = pair.name
    self._pair = pair
    self._load_part = load_part
    self._together = tuple(together)
    self._checkpoint_sha256 = checkpoint_sha256
    self._dtype = dtype
    self._bonus = bonus
    self._detail = detail
    self._is_decoder_only = self._pair.family == 'decoder-only'
    if chat_template != 'none' and not self._is_decoder_only:
      raise ConfigError(
          what=f'chat_template {chat_template!r}', where=pair.name, got='an encoder-decoder', expected='a decoder')
    self._framing = framing.make(chat_template, tokenizer=pair.tokenizer, family=pair.family)
    self._force_length = force_length
    self._eos_ids = () if force_length else self._framing.eos_ids

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
        'chat_template': None if self._framing.name == 'none' else self._framing.name,
        'models': {role: repr(getattr(self._pair, role)) for role in sizes},
    }

  def encode(self, example):
    """The token ids that the target is prompted with; of an encoder-decoder the encoder's input."""
    return tuple(self._framing.question(example.inputs))

  def encode_turn(self, text):
    """The token ids of what is asked in a later turn."""
    return tuple(self._framing.turn(text))

  def follow_up(self, question, tokens):
    """The question of the next turn, behind the generated `tokens` of this one."""
    prompt = self._framing.follow_up(question.prompt, tokens, question.turns[question.turn])
    return question._replace(prompt=tuple(prompt), turn=question.turn + 1)

  def text(self, token_ids):
    """The text of generated tokens up to the first that ends an answer."""
    return prompts.answer_text(token_ids, self._pair.tokenizer, eos_ids=self._framing.eos_ids)

  def shape(self, questions, *, max_new_tokens, points):
    """The `Shape` that holds all `questions`, with room for the widest round of `points`.

    Raises:
      PromptError: an empty prompt. LimitError: more tokens than a model was made for.
    """
    longest = max(map(functools.partial(self._longest_prompt, max_new_tokens=max_new_tokens), questions))
    if not all(question.prompt for question in questions):
      raise PromptError(what='empty prompt', where=next(q.id for q in questions if not q.prompt))
    self._check_length(questions, max_new_tokens)
    width = generate.bucket(longest)
    in_decoder = width if self._is_decoder_only else 1
    slack = max(self.decoder(point)[0].slack for point in {point.structure: point for point in points}.values())
    ends = [self._answer_ends(question) for question in questions]
    stops = max(map(len, ends)), max(map(answer_ends.longest, ends))
    return Shape(width, max_new_tokens, in_decoder + max_new_tokens + slack, stops,
                 may_truncate=any(point.sampling.truncates for point in points))

  def _answer_ends(self, question):
    """The token sequences behind which an answer to a question is over."""
    if self._force_length:
      return ()
    return answer_ends.sequences(self._pair.tokenizer, tuple(question.example.check.get(example_lib.ANSWER_ENDS, ())))

  def _longest_prompt(self, question, *, max_new_tokens):
    """Tokens of the prompt of its last turn, where every answer is as long as it may be."""
    return len(question.prompt) + sum(
        max_new_tokens + len(turn) + self._framing.num_marks for turn in question.turns)

  def _check_length(self, questions, max_new_tokens):
    inputs.check_length(
        self._pair, lengths=[self._longest_prompt(question, max_new_tokens=max_new_tokens) for question in questions],
        limits=[max_new_tokens] * len(questions), names=[question.id for question in questions])

  def executables(self, points):
    """(prefills, decodes): how many programs are compiled for some points; values of numbers make no other program."""
    structures = {point.structure: point for point in points}.values()
    decoders = [(self.decoder(point)[0], point.batch) for point in structures]
    return (len({(jax.tree.structure(_before_rounds(decoder)), batch) for decoder, batch in decoders}),
            len({(jax.tree.structure(decoder), batch) for decoder, batch in decoders}))

  def decoder(self, point):
    """(decoder, params) of a point; the knobs are leaves, so their values do not matter to the executable.

    Raises:
      ConfigError: the pair lacks a part that the method needs.
    """
    decoder, params = self._build(point.method, dict(point.knob), point.num_draft_tokens)
    if point.method in self._together and methods.lookup(point.method).drafts:
      others = {name: self._build(name, methods.lookup(name).first_knob, point.num_draft_tokens)[0]
                for name in self._together if methods.lookup(name).drafts and not methods.lookup(name).needs}
      decoder = sharing.switched(decoder, point.method, others)
    return decoder, params

  def _build(self, name, knob, num_draft_tokens):
    method = methods.lookup(name)
    return methods.build_decoder(
        self.pair_with(method.needs), method, knob=knob,
        setting=methods.Setting(num_draft_tokens, self._bonus, self._detail))

  def pair_with(self, roles):
    """The pair, with those parts of some roles that there are; each is read once, when it is first asked for."""
    for role in roles:
      if role in parts.ROLES and role not in self._pair.parts:
        found = self._load_part(role, self._pair)
        if found is not None:
          self._pair = self._pair.with_part(role, *found)
    return self._pair

  def memory_parts(self, point, shape):
    """Name -> bytes that a batch needs beside the parameters (already loaded), without compiling anything."""
    decoder, params = self.decoder(point)
    return memory.batch_bytes(decoder, params, self._requests(point, [], shape), capacity=shape.capacity)

  def step_costs(self, shape):
    """Role -> weight bytes read per pass, flops per token, and cache bytes of one row at full capacity."""
    found = {role: self._step_cost(role, shape) for role in ('target', 'drafter')}
    if hasattr(self._pair.target, 'first_layers'):
      found['layers'] = self._step_cost('layers', shape)
    found['rescorer'] = found['drafter']  # What rescores where there is no other.
    for role, num_heads in (('heads', None), ('autoregressive_head', 1)):
      if role in self._pair.parts:
        found[role] = self._heads_cost(role, num_heads or self._pair.parts[role].num_heads, shape)
    return found

  def _heads_cost(self, role, num_heads, shape):
    """Heads read themselves, and the target's output table, which each of them ends in; the cache of one is left out."""
    target, heads = self._pair.target, self._pair.params[role]
    table = target.embed_dim * target.vocab_size
    return {
        'weight_bytes': memory.tree_bytes(heads) + table * jnp.dtype(self._dtype).itemsize, 'cache_bytes_per_row': 0,
        'capacity': shape.capacity,
        'flops_per_token': 2 * (sum(int(leaf.size) for leaf in jax.tree.leaves(heads)) + num_heads * table)}

  def _step_cost(self, role, shape):
    if role == 'layers':
      model = drafting.early_layers(self._pair.target)
      params = _under(jax.eval_shape(model.init, jax.random.key(0)), self._pair.params['target'])
    else:
      params, model = self._pair.params[role], getattr(self._pair, role)
    read = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if _is_read(path, params)]
    requests = self._requests(None, [], shape, batch=1)
    cache = jax.eval_shape(lambda p, prompt: model.prefill(p, prompt, shape.capacity)[1], params, requests.prompt)
    return {
        'weight_bytes': memory.tree_bytes(read), 'flops_per_token': 2 * sum(int(leaf.size) for leaf in read),
        'cache_bytes_per_row': memory.tree_bytes(cache), 'capacity': shape.capacity,
    }

  def _requests(self, point, questions, shape, *, batch=None):
    count, batch = len(questions), batch or point.batch
    requests = generate.build_requests(
        [list(question.prompt) for question in questions], family=self._pair.family, width=shape.width,
        batch_size=batch, sampling=[point.sampling] * count if count else [],
        max_new_tokens=[shape.max_new_tokens] * count, eos_ids=self._eos_ids,
        seed=[point.seed] * count if count else [], example_id=[question.index for question in questions],
        # A later turn draws other random numbers, also where its rounds start at the same positions (encoder-decoders).
        sample_index=[question.turn for question in questions], vocab_size=self._pair.target.vocab_size,
        start_token=self._pair.tokenizer.pad_id, may_truncate=shape.may_truncate)
    if not shape.stops[0]:
      return requests
    return requests.replace(stop_sequences=self._stop_sequences(questions, shape, batch))

  def _stop_sequences(self, questions, shape, batch):
    """int32[B, S, W] of `types.Requests.stop_sequences`; of one shape for all tasks, or each would compile its own."""
    found = np.full((batch, *shape.stops), -1, np.int32)
    for row, question in enumerate(questions):
      for place, tokens in enumerate(self._answer_ends(question)):
        found[row, place, :len(tokens)] = tokens
    return found

  def compile(self, point, shape):
    """The `CompileRecord`s of what was compiled now for a point. May be called from several threads."""
    decoder, params = self.decoder(point)
    return run.compile_ahead(
        decoder, params, self._requests(point, [], shape), capacity=shape.capacity, first=_before_rounds(decoder))

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

  def collect(self, decoder, params, point, questions, shape):
    """`run.Collected` of one batch by any decoder of this pair, sampled and sized as a point says; not timed."""
    requests = jax.device_put(self._requests(point, questions, shape))
    state = run.prefill(decoder, params, requests, capacity=shape.capacity)
    return run.collect(run.decode(decoder, params, state, max_steps=decoder.num_phases * shape.max_new_tokens))

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
    batch, first = self.teacher_forced(prompt, generated, encoder_width=shape.width, width=shape.capacity)
    return np.asarray(self._forward(self._pair.params['target'], batch)[0, first + len(generated)])

  def teacher_forced(self, prompt, generated, *, encoder_width, width):
    """(`TrainingBatch` of one padded row with prompt and continuation, the position that predicts its first token)."""
    def padded(tokens, width):
      found = np.zeros((2, 1, width), np.int32)
      found[0, 0, :len(tokens)], found[1, 0, :len(tokens)] = tokens, 1
      return found, np.arange(width, dtype=np.int32)[None]

    encoder, given = {}, list(prompt)
    if not self._is_decoder_only:
      (source, segments), positions = padded(prompt, encoder_width)
      encoder = dict(encoder_tokens=source, encoder_positions=positions, encoder_segments=segments)
      given = [self._pair.tokenizer.pad_id]
    (fed, segments), positions = padded([*given, *generated], width)
    targets = np.roll(fed, -1, axis=1)  # What follows each token; behind the last one nobody looks.
    batch = types.TrainingBatch(
        tokens=fed, targets=targets, weights=np.ones(fed.shape, np.float32), positions=positions, segments=segments,
        **encoder)
    return batch, len(given) - 1

  @functools.cached_property
  def _forward(self):
    return jax.jit(lambda params, batch: self._pair.target.forward(params, batch).logits)

  def likelihoods(self, questions):
    """Role -> the `Likelihood` of each question's reference behind its prompt, by one full pass each.

    Raises:
      LimitError: a prompt with its reference is longer than a model was made for.
    """
    references = [self._framing.reference(question.example.inputs, question.example.targets) for question in questions]
    lengths, sizes = [len(question.prompt) for question in questions], [len(tokens) for tokens, _ in references]
    inputs.check_length(self._pair, lengths=lengths, limits=sizes, names=[question.id for question in questions])
    encoder_width = generate.bucket(max(lengths))
    width = generate.bucket(max(
        size + (length if self._is_decoder_only else 1) for length, size in zip(lengths, sizes, strict=True)))
    found = {'target': [], 'drafter': []}
    for role, kept in found.items():
      score = jax.jit(functools.partial(_score_tokens, getattr(self._pair, role)))
      for question, (tokens, text) in zip(questions, references, strict=True):
        batch, first = self.teacher_forced(question.prompt, tokens, encoder_width=encoder_width, width=width)
        log_probs, is_best = (np.asarray(array)[0, first:first + len(tokens)]
                              for array in score(self._pair.params[role], batch))
        kept.append(Likelihood(float(log_probs.astype(np.float64).sum()), len(tokens),
                               len(text.encode('utf-8', 'surrogatepass')), bool(is_best.all())))
    return found

  def machine(self):
    """The measured `timing.Machine` this process runs on."""
    return timing.measure_machine()

  def compile_log(self):
    """The executables compiled so far by this process, with seconds."""
    return run.compile_log()


def _score_tokens(model, params, batch):
  """(log-probabilities of the targets [B, T], whether each is the likeliest token), at least in float32."""
  logits = model.forward(params, batch).logits
  laws = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
  picked = jnp.take_along_axis(laws, batch.targets[..., None], axis=-1)[..., 0]
  return picked, jnp.argmax(logits, axis=-1) == batch.targets


def _before_rounds(decoder):
  """A decoder with the same first state for all rules, which makes one executable of their prefills."""
  if isinstance(decoder, speculative.SpeculativeDecoder):
    return decoder.replace(rule=lossless.Lossless(), verifier=speculative.TokenVerifier(), bonus='rule')
  return decoder


def _under(kept, params):
  """What of the nested dict `params` has a place in the nested dict `kept`."""
  if not isinstance(kept, dict):
    return params
  return {name: _under(kept[name], leaf) for name, leaf in params.items() if name in kept}


def _is_read(path, params):
  """Whether a parameter is read in every decoding pass: not the encoder's, nor the cross-attention's keys and values
  (cached), nor an input table beside a head of its own."""
  names = [str(getattr(key, 'key', key)) for key in path]
  if names[0] == 'encoder' or ('cross_attention' in names and {'key', 'value'} & set(names)):
    return False
  return not ('head' in params and 'embed' in names[0])


def load_runner(
    name, *, dtype, bonus, force_length, detail, vocabulary='same', chat_template='auto', heads=None,
    autoregressive_head=None, ngrams=(), together=(), is_outline=False):
  """The `PairRunner` of a built-in pair, or of the two checkpoints TARGET::DRAFTER.

  Args:
    name: of the pair.
    dtype, bonus, force_length, detail, vocabulary: as in `evaluate.evaluate`.
    chat_template: one of `framing.CHOICES`; 'auto' is what the target's folder says.
    heads, autoregressive_head, ngrams: files of parts, as in `evaluate.evaluate`.
    together: as of `PairRunner`.
    is_outline: whether shapes stand for the parameters: it knows all sizes and cannot generate.

  Raises:
    ConfigError: no such pair. CheckpointError, VocabError: it cannot be read.
  """
  digest = None
  if loaded.is_named(name):
    pair = loaded.load_named(name, dtype=jnp.dtype(dtype), vocabulary=vocabulary, is_outline=is_outline)
    if chat_template == 'auto':
      is_decoder = pair.family == 'decoder-only'
      chat_template = loaded.chat_template_of(loaded.paths_of(name)[0]) if is_decoder else 'none'
  elif name not in builtin.PAIRS:
    raise ConfigError(what='pair', where='evaluate.pairs', got=name, fix='Or name two checkpoints: TARGET::DRAFTER.',
                      expected=f'one of {", ".join(builtin.PAIRS)}')
  else:
    pair = _outline_of(name, jnp.dtype(dtype)) if is_outline else builtin.load_pair(name, dtype=jnp.dtype(dtype))
    with importlib.resources.as_file(importlib.resources.files('specjax.pairs') / 'data' / name) as directory:
      digest = provenance.sha256_of_files(directory.glob('*'))
  return PairRunner(
      pair, checkpoint_sha256=digest, dtype=dtype, bonus=bonus, force_length=force_length, detail=detail,
      chat_template='none' if chat_template == 'auto' else chat_template,
      load_part=parts.loader(name, dtype=jnp.dtype(dtype), files={
          'heads': heads, 'autoregressive_head': autoregressive_head, 'ngrams': ngrams}), together=together)


def _outline_of(name, dtype):
  """A built-in pair with shapes in place of parameters."""
  models = {role: builtin.make_model(builtin.MODELS[f'{name}_{role}'], dtype=dtype) for role in ('target', 'drafter')}
  return builtin.make_pair(
      name, **{role: (model, jax.eval_shape(model.init, jax.random.key(0))) for role, model in models.items()})
