"""Methods: functions of a pair that return a decoder, so that one name serves every pair."""

import dataclasses
import typing

from specjax.core import checks
from specjax.core import errors
from specjax.decode import autoregressive as autoregressive_decoding
from specjax.decode import routed
from specjax.decode import sequence_cascade as sequence_decoding
from specjax.decode import speculative as speculative_decoding
from specjax.drafters import autoregressive_head as autoregressive_head_drafter
from specjax.drafters import heads as head_drafter
from specjax.drafters import model as model_drafter
from specjax.drafters import model_tree as tree_drafter
from specjax.drafters import ngram as ngram_drafter
from specjax.drafters import prompt_lookup as lookup_drafter
from specjax.ops import ngrams
from specjax.ops import trees
from specjax.rules import lossless

_VERIFIERS = {'token': speculative_decoding.TokenVerifier(), 'block': speculative_decoding.BlockVerifier()}
_TREE_VERIFIERS = {
    'recursive': speculative_decoding.RecursiveVerifier(), 'traversal': speculative_decoding.TraversalVerifier(),
    'k_sequential': speculative_decoding.KSequentialVerifier()}


def speculative(
    *, num_draft_tokens, rule=None, bonus='rule', verifier='token', max_draft_tokens=None, stopping=None, recorder=None,
    with_log_probs=True):
  """A method: speculative decoding with the pair's drafter.

  Args:
    num_draft_tokens: K in [0, 256]; 0 is autoregressive decoding of the target, and refuses a rule with another law.
    rule: a target rule (`specjax.rules`); None is lossless.
    bonus: 'rule' or 'target', the law of the token after full acceptance.
    verifier: 'token' or 'block'; blocks keep at least as many tokens. The law is the same, but with `bonus='target'` and a
      rule that is not lossless: whole drafts, and so the target's token behind them, are more frequent with blocks.
    max_draft_tokens: traced cap in 0..K on the proposal's length; 0 is the autoregressive baseline of the same executable.
    stopping: a policy of `specjax.drafters.stopping` that ends a draft before K tokens, or None.
    recorder: what to keep of each step (`specjax.decode.recorders`), or None.
    with_log_probs: keep the target's log-probabilities.
  """
  check_drafts(num_draft_tokens, max_draft_tokens)
  if stopping is not None:
    _check_part('stopping', stopping, 'threshold', 'a policy of specjax.drafters.stopping')
    checks.real(f'{type(stopping).__name__}.threshold', stopping.threshold)
  rule = lossless.Lossless() if rule is None else check_rule(rule)
  if num_draft_tokens == 0 and not rule.is_lossless:
    raise errors.ParamError(
        what=f'rule {type(rule).__name__} with num_draft_tokens', got=0, expected='at least 1',
        fix="without drafts there is the target's law alone: leave the rule out, or draft; max_draft_tokens=0 keeps a rule")
  given = dict(stopping=stopping is not None, verifier=verifier != 'token', bonus=bonus != 'rule',
               max_draft_tokens=max_draft_tokens is not None)
  if num_draft_tokens == 0 and any(given.values()):
    raise errors.ParamError(
        what='num_draft_tokens with ' + ', '.join(name for name, is_given in given.items() if is_given), got=0,
        expected='at least 1', fix='without drafts these options have no effect: leave them out')

  def drafter_of(pair):
    return model_drafter.ModelDrafter(
        model=widened(pair.drafter, num_draft_tokens + 1), num_draft_tokens=num_draft_tokens,
        max_draft_tokens=max_draft_tokens, stopping=stopping,
        with_features=getattr(rule, 'needs_drafter_features', False))

  options = dict(rule=rule, bonus=bonus, verifier=verifier, recorder=recorder, with_log_probs=with_log_probs)
  loop = drafting(drafter_of, **options)
  if num_draft_tokens:
    return loop
  return lambda pair: autoregressive_decoding.decoder(pair.target).replace(recorder=recorder, with_log_probs=with_log_probs)


def prompt_lookup(
    *, num_draft_tokens, max_match=3, min_match=1, prefers='last', max_draft_tokens=None, **options):
  """A method: drafts copied from the text, without a drafter; see `specjax.drafters.PromptLookup`.

  Args:
    num_draft_tokens: K in [1, 256].
    max_match, min_match: at most and at least so many of the latest tokens must agree; 1 <= min_match <= max_match <= 32.
    prefers: 'last' or 'first' of equally long matches.
    max_draft_tokens: traced cap in 0..K on the proposal's length.
    **options: `rule` (one that does not read the drafter's law), `verifier`, `recorder`, `with_log_probs`, as in
      `speculative`.
  """
  check_drafts(num_draft_tokens, max_draft_tokens, low=1)
  checks.integer('max_match', max_match, low=1, high=32)
  checks.integer('min_match', min_match, low=1, high=max_match, over=errors.ParamError)
  checks.choice('prefers', prefers, ('first', 'last'))
  _refuse_drafter_law(options.get('rule'), 'prompt_lookup')
  return drafting(
      lambda pair: lookup_drafter.PromptLookup(
          vocab_size=pair.target.vocab_size, num_draft_tokens=num_draft_tokens, max_match=max_match, min_match=min_match,
          prefers=prefers, max_draft_tokens=max_draft_tokens),
      **options)


def early_exit(*, num_layers, num_draft_tokens, max_draft_tokens=None, stopping=None, **options):
  """A method: the target's first layers draft for the whole target, with its own parameters (LayerSkip's inference).

  Args:
    num_layers: of the decoder, at least 1 and at most the target's.
    num_draft_tokens: K in [1, 256].
    max_draft_tokens, stopping: as in `speculative`.
    **options: `rule`, `bonus`, `verifier`, `recorder`, `with_log_probs`, as in `speculative`.
  """
  check_drafts(num_draft_tokens, max_draft_tokens, low=1)

  def drafter_of(pair):
    if not hasattr(pair.target, 'first_layers'):
      raise errors.ParamError(
          what='early_exit of the target', got=type(pair.target).__name__, expected='a model that has first_layers')
    model = widened(pair.target.first_layers(num_layers), num_draft_tokens + 1)
    return model_drafter.ModelDrafter(
        model=model, num_draft_tokens=num_draft_tokens, max_draft_tokens=max_draft_tokens, stopping=stopping,
        params_from='target')

  return drafting(drafter_of, **options)


def speculative_tree(*, shape, children='distinct', verifier='recursive', **options):
  """A method: speculative decoding with a tree of drafts by the pair's drafter, verified in one pass of the target.

  Args:
    shape: `specjax.TreeShape`, or a list of children per level such as (4, 2, 1).
    children: 'distinct' (drawn without replacement), 'replacement' or 'top' (the most probable tokens).
    verifier: 'recursive' (SpecInfer, Sequoia), 'traversal', or 'k_sequential' (SpecTr; children with replacement only). All
      are lossless. Or a `specjax.decode.speculative.TypicalVerifier`, which is lossy above temperature 0.
    **options: `rule`, `bonus`, `with_log_probs`, as in `speculative`.
  """
  if not isinstance(shape, trees.TreeShape):
    shape = trees.TreeShape.from_branching(shape)
  checks.choice('children', children, ('replacement', 'distinct', 'top'))
  verify = _tree_verifier(verifier, tuple(_TREE_VERIFIERS))
  if verifier == 'k_sequential' and children != 'replacement':
    raise errors.ParamError(
        what="children with verifier 'k_sequential'", got=children, expected="'replacement': the test is for independent draws")
  _refuse_recorder(options)
  return drafting(
      lambda pair: tree_drafter.ModelTreeDrafter(
          model=widened(pair.drafter, shape.num_nodes + 1), shape=shape, children=children),
      verifier=verify, **options)


def _tree_verifier(verifier, names):
  """The verifier of a tree by one of `names`, or a `TypicalVerifier` with checked numbers."""
  if isinstance(verifier, speculative_decoding.TypicalVerifier):
    return _with_floats(verifier)
  if not isinstance(verifier, str):
    raise errors.ParamError(
        what='verifier of a tree', got=verifier, expected=f'one of {names}, or a TypicalVerifier of specjax.decode.speculative')
  return _TREE_VERIFIERS[checks.choice('verifier', verifier, names)]


def draft_heads(
    *, heads, num_draft_tokens=None, shape=None, draws=None, max_draft_tokens=None, refinement=None, verifier=None, **options):
  """A method: blockwise parallel decoding, or Medusa where a tree is given; heads on the target draft for it.

  The pair's `params['heads']` are the heads' parameters; its drafter is not used.

  Args:
    heads: a `specjax.models.heads.DraftHeads`.
    num_draft_tokens: K of a chain, at most the number of heads; None without a chain.
    shape: of a tree (`specjax.TreeShape`, or children per level) of at most as many levels as heads; None for a chain.
    draws: 'sampled' from each head's law, the default of a plain chain, or 'greedy'; trees hold the most probable tokens, and
      a refinement wants 'greedy'.
    max_draft_tokens: traced cap in 0..K on how many tokens follow each other.
    refinement: `LocalRescoring` or `LatticeRescoring` of `specjax.drafters`, or None. Its model's parameters are the pair's
      `params['rescorer']` or `params['ngrams']`. Local rescoring takes a chain or a tree; the best paths of a lattice are a
      tree where it asks for more than one, and num_draft_tokens is their length.
    verifier: of a chain 'token' (default) or 'block', of a tree 'recursive' (default), 'traversal' or a lossy
      `specjax.decode.speculative.TypicalVerifier`.
    **options: `rule` (one that does not read the drafter's law), `bonus`, `recorder`, `with_log_probs`, as in `speculative`.
  """
  draws = 'sampled' if draws is None and refinement is None else 'greedy' if draws is None else draws
  checks.choice('draws', draws, ('sampled', 'greedy'))
  if (shape is None) == (num_draft_tokens is None):
    raise errors.ParamError(
        what='num_draft_tokens and shape', got=(num_draft_tokens, shape), expected='one of them: a chain or a tree')
  if shape is not None:
    shape = shape if isinstance(shape, trees.TreeShape) else trees.TreeShape.from_branching(shape)
  deepest = num_draft_tokens if shape is None else shape.max_depth
  check_drafts(deepest, max_draft_tokens, low=1)
  num_nodes = deepest if shape is None else shape.num_nodes
  if refinement is not None:
    num_nodes = _check_refinement(refinement, draws, shape, deepest)
  if num_nodes == num_draft_tokens:
    verify = _VERIFIERS[checks.choice('verifier', 'token' if verifier is None else verifier, tuple(_VERIFIERS))]
  else:
    verify = _tree_verifier('recursive' if verifier is None else verifier, ('recursive', 'traversal'))
    _refuse_recorder(options)
  if deepest > heads.num_heads:
    raise errors.ParamError(what='tokens in a row to draft', got=deepest, expected=f'at most the {heads.num_heads} heads')
  _refuse_drafter_law(options.get('rule'), 'draft_heads')

  def drafter_of(pair):
    if 'heads' not in pair.params:
      raise errors.ParamError(what="params of the pair", got=sorted(pair.params), expected="the key 'heads'")
    if pair.target.embed_dim != heads.config.embed_dim:
      raise errors.ParamError(
          what='width of the heads', got=heads.config.embed_dim, expected=f"the target's {pair.target.embed_dim}",
          fix='these heads were trained on another target')
    return head_drafter.HeadDrafter(
        heads=heads, model=pair.target, num_draft_tokens=num_nodes, shape=shape, draws=draws,
        max_draft_tokens=max_draft_tokens, refinement=_refinement_of(pair, refinement, deepest, num_nodes + 1),
        num_levels=deepest if shape is None and num_nodes > deepest else None)

  method = drafting(drafter_of, verifier=verify, **options)
  return lambda pair: method(dataclasses.replace(pair, target=_with_hidden(pair.target)))


def _check_refinement(refinement, draws, shape, num_levels):
  """The nodes that a refined draft of so many levels has, after the checks that need no pair."""
  _check_part('refinement', refinement, 'refine', 'such as specjax.drafters.LocalRescoring(model=..., top_k=16, weight=1.0)')
  if draws == 'sampled':
    raise errors.ParamError(
        what='draws with a refinement', got=draws, expected="'greedy'", fix='a rescored token is not drawn from a law of its own')
  if shape is None:
    return refinement.num_nodes(num_levels)
  if not hasattr(refinement, 'refine_tree'):
    raise errors.ParamError(
        what='shape with the refinement', got=type(refinement).__name__, expected='LocalRescoring',
        fix='the best paths of a lattice make a tree of their own: give num_draft_tokens')
  return shape.num_nodes


def _refinement_of(pair, refinement, num_levels, width):
  """The refinement, checked against the pair, with a float for its weight and room for blocks of `width` in its model."""
  if refinement is None:
    return None
  refinement.check(pair.params, vocab_size=pair.target.vocab_size, num_heads=num_levels)
  changes = {} if refinement.weight is None else {'weight': checks.real('weight', refinement.weight)}
  if hasattr(refinement, 'model'):
    changes['model'] = widened(refinement.model, width)
  return refinement.replace(**changes)


def ngram(
    *, num_draft_tokens, order=3, source='trained', draws='sampled', max_draft_tokens=None, concentration=1.0, **options):
  """A method: drafts of an n-gram model, without a drafter; see `specjax.drafters.NgramDrafter`.

  Args:
    num_draft_tokens: K in [1, 256].
    order: n in 1..8, tokens of the longest n-gram; of a trained model its own.
    source: 'trained', the model in the pair's `params['ngrams']`, or 'text', counted in the row's own text while it grows.
    draws: 'sampled' from the model's law or 'greedy'.
    max_draft_tokens: traced cap in 0..K on the proposal's length.
    concentration: of 'text', how many counts the shorter n-grams weigh, above 0.
    **options: `rule`, `bonus`, `verifier`, `recorder`, `with_log_probs`, as in `speculative`; a rule that reads the drafter's
      law wants draws 'sampled'.
  """
  check_drafts(num_draft_tokens, max_draft_tokens, low=1)
  checks.integer('order', order, low=1, high=ngrams.MAX_ORDER, over=errors.ParamError)
  checks.choice('source', source, ('trained', 'text'))
  checks.choice('draws', draws, ('sampled', 'greedy'))
  concentration = checks.real('concentration', concentration, low=0, low_open=True)
  if draws == 'greedy':
    _refuse_drafter_law(options.get('rule'), "ngram with draws='greedy'")

  def drafter_of(pair):
    common = dict(vocab_size=pair.target.vocab_size, num_draft_tokens=num_draft_tokens, draws=draws,
                  max_draft_tokens=max_draft_tokens)
    if source == 'text':
      return ngram_drafter.NgramDrafter(text_order=order, concentration=concentration, **common)
    ngrams.check(pair.params, order=order, vocab_size=pair.target.vocab_size, where='ngram')
    return ngram_drafter.NgramDrafter(**common)

  return drafting(drafter_of, **options)


def autoregressive_head(*, head, num_draft_tokens, draws='sampled', max_draft_tokens=None, **options):
  """A method: an autoregressive head continues the target's hidden states and drafts from them, as EAGLE does.

  The pair's `params['autoregressive_head']` are the head's parameters; its drafter is not used.

  Args:
    head: a `specjax.models.autoregressive_head.AutoregressiveHead`.
    num_draft_tokens: K in [1, 256].
    draws: 'sampled' from the head's law or 'greedy'.
    max_draft_tokens: traced cap in 0..K on the proposal's length.
    **options: `rule` (one that does not read the drafter's law), `bonus`, `verifier`, `recorder`, `with_log_probs`, as in
      `speculative`.
  """
  checks.choice('draws', draws, ('sampled', 'greedy'))
  check_drafts(num_draft_tokens, max_draft_tokens, low=1)
  _refuse_drafter_law(options.get('rule'), 'autoregressive_head')

  def drafter_of(pair):
    if not hasattr(pair.target, 'embed'):
      raise errors.ParamError(
          what='autoregressive_head of the target', got=type(pair.target).__name__, expected='a model that has embed')
    if 'autoregressive_head' not in pair.params:
      raise errors.ParamError(
          what='params of the pair', got=sorted(pair.params), expected="the key 'autoregressive_head'")
    if pair.target.embed_dim != head.config.embed_dim:
      raise errors.ParamError(
          what='width of the head', got=head.config.embed_dim, expected=f"the target's {pair.target.embed_dim}",
          fix='this head was trained on another target')
    return autoregressive_head_drafter.AutoregressiveHeadDrafter(
        head=head, model=pair.target, num_draft_tokens=num_draft_tokens, draws=draws, max_draft_tokens=max_draft_tokens)

  method = drafting(drafter_of, **options)
  return lambda pair: method(dataclasses.replace(pair, target=_with_hidden(pair.target)))


def _with_hidden(model):
  """`model`, whose prefill returns hidden states."""
  names = {field.name for field in dataclasses.fields(model)}
  if 'return_hidden' in names:
    return dataclasses.replace(model, return_hidden=True)
  return dataclasses.replace(model, model=_with_hidden(model.model)) if 'model' in names else model


def _refuse_drafter_law(rule, method):
  if rule is not None and check_rule(rule).needs_drafter_law:
    raise errors.ParamError(
        what=f'rule of {method}', got=type(rule).__name__, expected="a rule that does not read the drafter's law",
        fix='such drafts come without one: choose Lossless, TruncatedTarget or LossyGreedy')


def _refuse_recorder(options):
  if options.get('recorder') is not None:
    raise errors.ParamError(what='recorder of a tree', got=options['recorder'], expected='None', fix='recorders read chains')


def drafting(drafter_of, *, rule=None, bonus='rule', verifier='token', recorder=None, with_log_probs=True):
  """A method: the speculative loop with any drafter.

  Args:
    drafter_of: function of a pair that returns the `Drafter`.
    rule, bonus, recorder, with_log_probs: as in `speculative`.
    verifier: 'token' or 'block', or a `Verifier`; drafters of trees want one of trees.
  """
  checks.choice('bonus', bonus, ('rule', 'target'))
  if not isinstance(with_log_probs, bool):
    raise errors.ParamError(what='with_log_probs', got=with_log_probs, expected='True or False')
  if isinstance(verifier, str):
    checks.choice('verifier', verifier, tuple(_VERIFIERS))
    verifier = _VERIFIERS[verifier]
  elif not callable(verifier):
    raise errors.ParamError(what='verifier', got=verifier, expected="'token', 'block' or a verifier")
  rule = lossless.Lossless() if rule is None else check_rule(rule)
  if recorder is not None:
    _check_part('recorder', recorder, 'update', 'a recorder such as specjax.decode.recorders.SummaryRecorder()')

  def method(pair):
    drafter = drafter_of(pair)
    return speculative_decoding.SpeculativeDecoder(
        target=widened(pair.target, drafter.num_draft_tokens + 1), drafter=drafter, rule=rule, bonus=bonus,
        verifier=verifier, recorder=recorder, with_log_probs=with_log_probs)

  return method


def check_drafts(num_draft_tokens, max_draft_tokens, *, low=0):
  """Errors for a K outside of [low, 256] or a cap outside of [0, K]."""
  checks.num_draft_tokens(num_draft_tokens)
  if num_draft_tokens < low:
    raise errors.ParamError(what='num_draft_tokens', got=num_draft_tokens, expected=f'at least {low}')
  if max_draft_tokens is not None:
    checks.integer('max_draft_tokens', max_draft_tokens, low=0, high=num_draft_tokens, over=errors.ParamError)


def autoregressive(*, width=1):
  """A method: the target alone, one token per pass; `width` > 1 makes each pass that wide (K + 1 for a same-width baseline)."""
  checks.integer('width', width, low=1, high=checks.MAX_DRAFT_TOKENS + 1)
  return lambda pair: autoregressive_decoding.decoder(widened(pair.target, width), width=width)


def token_cascade(*, router, chunk):
  """A method: the pair's drafter writes, and its target writes the tokens that the router defers.

  Args:
    router: a router (`specjax.routers`).
    chunk: tokens in 1..257 that one target pass feeds when it catches up; the law does not depend on it.
  """
  checks.integer('chunk', chunk, low=1, high=checks.MAX_DRAFT_TOKENS + 1)
  _check_part('router', router, 'knobs', 'a router such as specjax.ChowRouter(threshold=0.3)')
  router = _with_floats(router)
  return lambda pair: routed.RoutedDecoder(
      target=widened(pair.target, chunk), drafter=pair.drafter, router=router, chunk=chunk)


def sequence_cascade(*, confidence, threshold, quantile=None):
  """A method: the pair's drafter writes the answer; where its confidence is below the threshold the target writes another.

  Args:
    confidence: 'mean_log_prob' or 'sum_log_prob' (nats), 'minimum' or 'quantile' (a probability) of the drafter's tokens.
    threshold: in the unit of the confidence.
    quantile: level in [0, 1] for 'quantile', None otherwise.
  """
  kinds = typing.get_args(sequence_decoding.Confidence)
  if confidence not in kinds:
    raise errors.ParamError(what='confidence', got=confidence, expected=f'one of {", ".join(kinds)}')
  threshold = checks.real('threshold', threshold)
  if (confidence == 'quantile') != (quantile is not None):
    raise errors.ParamError(
        what=f'quantile with confidence {confidence!r}', got=quantile,
        expected='a level in [0, 1]' if confidence == 'quantile' else 'None')
  if quantile is not None:
    quantile = checks.real('quantile', quantile, low=0, high=1)
  return lambda pair: sequence_decoding.SequenceCascade(
      target=pair.target, drafter=pair.drafter, confidence=confidence, threshold=threshold, quantile=quantile)


def widened(model, width):
  """`model` with room for blocks and rewinds of `width` tokens: a ring that is too small would lose old tokens silently."""
  if model.max_extend is None or model.max_extend >= width:
    return model
  if 'max_extend' not in {field.name for field in dataclasses.fields(model)}:  # A view of another model.
    return dataclasses.replace(model, model=widened(model.model, width))
  return dataclasses.replace(model, max_extend=width)


def _check_part(what, part, attribute, expected):
  """`ParamError` for a part that is a name, a number or a class that was not called."""
  if isinstance(part, type) or getattr(part, attribute, None) is None:
    got = part.__name__ if isinstance(part, type) else part
    raise errors.ParamError(what=what, got=got, expected=expected)


def _with_floats(part):
  """`part` with every knob checked and a float: 0 and 0.5 must not be two executables."""
  return dataclasses.replace(
      part, **{knob: checks.knob(knob, getattr(part, knob), where=type(part).__name__) for knob in part.knobs})


def check_rule(rule):
  """`rule` with floats for knobs, or `ParamError` for a knob that is not a number in its range."""
  _check_part('rule', rule, 'is_lossless', 'a rule such as specjax.Chow(threshold=0.3)')
  return _with_floats(rule)


def check_sampling(rule, sampling):
  """`ParamError` when a rule that is defined for greedy decoding meets a temperature above 0."""
  if rule.greedy_only and sampling.temperature > 0:
    raise errors.ParamError(
        what=f'temperature with the rule {type(rule).__name__}', got=sampling.temperature,
        expected='0: the rule is defined for greedy decoding only',
        fix='Set temperature=0, or choose a rule for sampling, such as TokenV3 or LossySpeculative.')
