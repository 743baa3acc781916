"""How the drafting methods of a sweep are built: who drafts, K tokens in a row or a tree of K levels, and who verifies.

A method may need parts of a pair beside its two models; `PARTS` says what each is and how one comes by it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from specjax.core import checks
from specjax.core.errors import ConfigError
from specjax.decode import methods as decode_methods
from specjax.decode import recorders
from specjax.decode import speculative
from specjax.drafters import refinement
from specjax.models import gemma
from specjax.models import t5
from specjax.ops import lattice
from specjax.ops import trees


class Part(NamedTuple):
  """A network that some methods need beside target and drafter.

  Attributes:
    title: what it is called.
    fix: how to get one.
    read_as: the key of `params` under which decoding reads it, None where it has no parameters of its own.
  """

  title: str
  fix: str
  read_as: str | None


_NGRAMS = 'Name a model in the ARPA format over the tokens of this target: --ngrams=FILE (of each order one).'
PARTS = {
    'layers': Part('layers that it can be left behind', 'Early exit wants a model of specjax, such as DecoderLM or T5LM.', None),
    'heads': Part('draft heads', 'Train them (python -m specjax.train, see gin/runs/train_heads_demo.gin), or name the file '
                  'of heads that were trained on this target: --heads=FILE.', 'heads'),
    'autoregressive_head': Part(
        'an autoregressive head', 'Train one (python -m specjax.train, see gin/runs/train_autoregressive_head.gin), or name the '
        'file of one that was trained on this target: --autoregressive_head=FILE.', 'autoregressive_head'),
    # A small model of the target's vocabulary is what every pair has.
    'rescorer': Part('a rescorer', "The pair's drafter is taken where there is no other.", 'rescorer'),
    'ngrams_2': Part('2-grams', _NGRAMS, 'ngrams'),
    'ngrams_4': Part('4-grams', _NGRAMS, 'ngrams'),
}

# Of each head the best tokens that a refinement chooses among, and the paths that are verified together: the paper's.
TOP_K = 16
NUM_BEST = 16

# How likely the first, second and third child of a node is the next token: what the default tree is built for. Levels are
# alike; on the built-in pairs heads are right less often the further they look, and a tree for them would be less deep.
_ACCEPTANCE = (0.8, 0.1, 0.05)
_NODES_PER_LEVEL = 3
# With more, that many nodes no longer hold the path of all first children.
MOST_LEVELS = 16


@functools.cache
def tree_shape(num_levels: int) -> trees.TreeShape:
  """The static tree of K levels that methods draft: three nodes a level, most of them near the root.

  Raises:
    LimitError: more than `MOST_LEVELS`.
  """
  checks.integer('num_draft_tokens of a tree, its levels', num_levels, low=1, high=MOST_LEVELS, where='evaluate')
  return trees.TreeShape.from_acceptance([_ACCEPTANCE] * num_levels, _NODES_PER_LEVEL * num_levels)


def num_path_nodes(num_levels: int) -> int:
  """Nodes of the tree of the `NUM_BEST` best paths through K levels."""
  return lattice.num_tree_nodes(NUM_BEST, num_levels, TOP_K)


def equipped(pair: Any, needs: tuple[str, ...], *, method: str) -> tuple[Any, dict[str, Any]]:
  """(the pair as a method reads it, the parameters of the parts that it needs by the name it reads them by).

  Raises:
    ConfigError: the pair lacks one.
  """
  params = {}
  for role in needs:
    if role == 'rescorer' and role not in pair.parts:
      pair = pair.with_part(role, pair.drafter, pair.params['drafter'])
    has_it = hasattr(pair.target, 'first_layers') if role == 'layers' else role in pair.parts
    if not has_it:
      raise ConfigError(
          what=f'{method} on a pair without {PARTS[role].title}', where=f'pair {pair.name}', got=sorted(pair.parts) or None,
          expected=f'the part {role!r}', fix=PARTS[role].fix)
    name = PARTS[role].read_as
    if name is not None:
      params[name] = pair.params[role]
      pair = pair.with_part(name, pair.parts[role], pair.params[role])
  return pair, params


def prompt_lookup(knob: Mapping[str, float], setting: Any) -> Callable[[Any], Any]:
  """Drafts copied from the text."""
  del knob
  return decode_methods.prompt_lookup(num_draft_tokens=setting.num_draft_tokens, **_options(setting))


def early_exit(knob: Mapping[str, float], setting: Any) -> Callable[[Any], Any]:
  """Drafts of the first half of the target's layers."""
  del knob
  return lambda pair: decode_methods.early_exit(
      num_layers=num_early_layers(pair.target), num_draft_tokens=setting.num_draft_tokens, bonus=setting.bonus,
      **_options(setting))(pair)


def num_early_layers(target: Any) -> int:
  """Half of the layers of a decoder, at least one."""
  config = getattr(target, 'model', target).config  # A view of another vocabulary is around the model.
  num_layers = config.num_layers if isinstance(config, gemma.DecoderConfig) else config.num_decoder_layers
  return max(1, num_layers // 2)


def early_layers(target: Any) -> Any:
  """The model that drafts for a target by `early_exit`."""
  return target.first_layers(num_early_layers(target))


def model_tree(verifier: str) -> Callable[..., Any]:
  """A builder: a tree drawn from the drafter without replacement."""
  return lambda knob, setting: decode_methods.speculative_tree(
      shape=tree_shape(setting.num_draft_tokens), verifier=verifier, bonus=setting.bonus, with_log_probs=False)


def heads_chain(knob: Mapping[str, float], setting: Any) -> Callable[[Any], Any]:
  """Drafts of the pair's heads, K in a row."""
  del knob
  return lambda pair: decode_methods.draft_heads(
      heads=pair.parts['heads'], num_draft_tokens=setting.num_draft_tokens, **_options(setting))(pair)


def heads_tree(knob: Mapping[str, float], setting: Any) -> Callable[[Any], Any]:
  """A tree of the pair's heads; with the knob `epsilon` accepted typically, delta its square root."""
  verifier = 'recursive'
  if knob:
    epsilon = checks.real('epsilon', knob['epsilon'], low=0, high=1, low_open=True, high_open=True, where='medusa_typical')
    verifier = speculative.TypicalVerifier(epsilon=epsilon, delta=math.sqrt(epsilon))
  return lambda pair: decode_methods.draft_heads(
      heads=pair.parts['heads'], shape=tree_shape(setting.num_draft_tokens), verifier=verifier, with_log_probs=False)(pair)


def rescored_heads(knob: Mapping[str, float], setting: Any) -> Callable[[Any], Any]:
  """Drafts of the heads, K in a row, each chosen by the rescorer among the head's best."""
  return lambda pair: decode_methods.draft_heads(
      heads=pair.parts['heads'], num_draft_tokens=setting.num_draft_tokens, refinement=_local(pair, knob['weight']),
      **_options(setting))(pair)


def rescored_tree(knob: Mapping[str, float], setting: Any) -> Callable[[Any], Any]:
  """A tree of the heads' best tokens, rescored from the root on."""
  return lambda pair: decode_methods.draft_heads(
      heads=pair.parts['heads'], shape=tree_shape(setting.num_draft_tokens), refinement=_local(pair, knob['weight']),
      with_log_probs=False)(pair)


def lattice_heads(order: int, *, num_best: int = 1) -> Callable[..., Any]:
  """A builder: the best paths through the lattice of the heads' best tokens, with an n-gram model of that order or none."""

  def build(knob, setting):
    chosen = refinement.LatticeRescoring(top_k=TOP_K, order=order, num_best=num_best, weight=knob.get('weight'))
    options = _options(setting) if num_best == 1 else dict(with_log_probs=False)
    return lambda pair: decode_methods.draft_heads(
        heads=pair.parts['heads'], num_draft_tokens=setting.num_draft_tokens, refinement=chosen, **options)(pair)

  return build


def autoregressive_head(knob: Mapping[str, float], setting: Any) -> Callable[[Any], Any]:
  """Drafts of a head that continues the target's hidden states."""
  del knob
  return lambda pair: decode_methods.autoregressive_head(
      head=pair.parts['autoregressive_head'], num_draft_tokens=setting.num_draft_tokens, **_options(setting))(pair)


def ngram(source: str, order: int) -> Callable[..., Any]:
  """A builder: drafts of an n-gram model, 'trained' or of the row's own 'text'."""
  return lambda knob, setting: decode_methods.ngram(
      num_draft_tokens=setting.num_draft_tokens, order=order, source=source, **_options(setting))


def _local(pair, weight):
  rescorer = pair.parts['rescorer']
  return refinement.LocalRescoring(
      model=rescorer, top_k=TOP_K, weight=weight,
      reads_encoder=isinstance(getattr(rescorer, 'model', rescorer), t5.T5LM))


def _options(setting):
  """What all chains have in common."""
  return dict(
      with_log_probs=False, recorder=recorders.SummaryRecorder() if setting.detail == 'summary' else None)
