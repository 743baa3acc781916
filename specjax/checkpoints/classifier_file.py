"""KL classifiers on disk: NAME.safetensors beside NAME.json, which names their pair by the bytes of both models."""

import dataclasses
import json
import os
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from specjax.checkpoints import native
from specjax.core import checks
from specjax.core import errors

FAMILY = 'kl_classifier'
MAX_WIDTH = 1 << 20
MAX_LAYERS = 4
MAX_KNOTS = 64
DIRECTIONS = ('target_drafter', 'drafter_target')
_FIX = 'this classifier was trained on another pair: train one on this pair'


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
  """A probe of `specjax.ops.probes` and what its probability means.

  Attributes:
    embed_dim: width of the drafter's hidden states.
    hidden_dims: of the hidden layers; () is a linear probe.
    level: nats; the probability is that of a divergence above it.
    direction: 'target_drafter' is KL(target || drafter), 'drafter_target' the reverse, both at temperature 1.
    num_knots: of the isotonic calibration; 0 has none.
  """

  embed_dim: int
  hidden_dims: tuple[int, ...] = ()
  level: float
  direction: Literal['target_drafter', 'drafter_target'] = 'target_drafter'
  num_knots: int = 0

  def __post_init__(self):
    checks.integer('embed_dim', self.embed_dim, low=1, high=MAX_WIDTH)
    if not isinstance(self.hidden_dims, (tuple, list)) or len(self.hidden_dims) > MAX_LAYERS:
      raise errors.ParamError(what='hidden_dims', got=self.hidden_dims, expected=f'at most {MAX_LAYERS} widths')
    object.__setattr__(self, 'hidden_dims', tuple(
        checks.integer('hidden_dims', width, low=1, high=MAX_WIDTH) for width in self.hidden_dims))
    object.__setattr__(self, 'level', checks.real('level', self.level, low=0, low_open=True))
    checks.choice('direction', self.direction, DIRECTIONS)
    checks.integer('num_knots', self.num_knots, low=0, high=MAX_KNOTS)

  @property
  def widths(self) -> tuple[int, ...]:
    """Of the features, the hidden layers and the logit."""
    return (self.embed_dim, *self.hidden_dims, 1)


def template(config: ClassifierConfig, *, dtype: Any = jnp.float32) -> dict[str, Any]:
  """The shapes of the parameters (`specjax.ops.probes`), as `jax.ShapeDtypeStruct`s."""
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, dtype)
  widths = config.widths
  return {
      'mean': shape(config.embed_dim), 'scale': shape(config.embed_dim),
      'kernels': [shape(*sizes) for sizes in zip(widths[:-1], widths[1:], strict=True)],
      'biases': [shape(size) for size in widths[1:]], 'temperature': shape(),
      'knots': {'x': shape(config.num_knots), 'y': shape(config.num_knots)}}


def describe(
    config: ClassifierConfig, *, target: str | os.PathLike, drafter: str | os.PathLike
) -> dict[str, Any]:
  """The JSON-able description of a classifier of the pair whose .safetensors files are `target` and `drafter`."""
  numbers = _numbers(target)
  return {
      'family': FAMILY, **dataclasses.asdict(config), 'target_sha256': native.sha256_file(target),
      'drafter_sha256': native.sha256_file(drafter),
      **{name: numbers[name] for name in ('vocab_size', 'tokenizer_sha256') if name in numbers}}


def save(
    path: str | os.PathLike, params: Any, config: ClassifierConfig, *, target: str | os.PathLike,
    drafter: str | os.PathLike, **more: Any,
) -> None:
  """Writes a classifier and its description, with `more` in it.

  Raises:
    CheckpointError: parameters that are no probe of this configuration.
  """
  _check_probe(params, config, str(path))
  described = describe(config, target=target, drafter=drafter) | more
  native.save_safetensors(path, params, described, dtype=np.float32)  # A few kilobytes, and knots must stay apart.


def load(
    path: str | os.PathLike, *, target: str | os.PathLike, drafter: str | os.PathLike, dtype: Any = jnp.float32
) -> tuple[ClassifierConfig, Any]:
  """(configuration, parameters) of a file, for the pair whose .safetensors files are `target` and `drafter`.

  Raises:
    VocabError: the pair has another vocabulary than the one it was trained with.
    CheckpointError: a file is missing or damaged, or the classifier is of another width or was trained on another pair.
  """
  description = native.load_description(path)
  beside = str(pathlib.Path(path).with_suffix('.json'))
  if description.get('family') != FAMILY:
    raise errors.CheckpointError(what='family', where=beside, got=description.get('family'), expected=FAMILY)
  _check_pair(description, target, drafter, path)
  try:
    config = ClassifierConfig(**{
        field.name: description.get(field.name) for field in dataclasses.fields(ClassifierConfig)})
  except (errors.ParamError, errors.LimitError) as error:
    raise errors.CheckpointError(what='shape of the classifier', where=beside, got=str(error)) from error
  params = native.load_safetensors(path, template(config), dtype=dtype)
  _check_probe(params, config, str(path))
  return config, params


def _check_pair(description, target, drafter, path):
  """Refuses a classifier of another pair, by the most telling difference: vocabulary, then width, then the bytes."""
  numbers = _numbers(target)
  for name in ('vocab_size', 'tokenizer_sha256'):
    if name in numbers and name in description and description[name] != numbers[name]:
      raise errors.VocabError(
          what=f'{name} of the classifier', where=str(path), got=description[name],
          expected=f"the pair's {numbers[name]}", fix=_FIX)
  width = _numbers(drafter).get('embed_dim')
  if width not in (None, description.get('embed_dim')):
    raise errors.CheckpointError(
        what='width of the features of the classifier', where=str(path), got=description.get('embed_dim'),
        expected=f"the drafter's {width}", fix=_FIX)
  for role, file in (('target', target), ('drafter', drafter)):
    sha256 = native.sha256_file(file)
    if description.get(f'{role}_sha256') != sha256:
      raise errors.CheckpointError(
          what=f'{role}_sha256', where=str(path), got=description.get(f'{role}_sha256'), expected=sha256, fix=_FIX)


def _check_probe(params, config, where):
  """`CheckpointError` unless the numbers are those of a probe: a calibration that falls would turn decisions around."""
  shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), template(config))
  if jax.tree.map(lambda leaf: tuple(np.shape(leaf)), params) != shapes:
    raise errors.CheckpointError(
        what='parameters of the classifier', where=where, got=jax.tree.map(np.shape, params), expected=shapes)
  x, y = (np.asarray(params['knots'][name], np.float64) for name in ('x', 'y'))
  problems = {
      'scale': not (np.asarray(params['scale']) > 0).all(), 'temperature': not params['temperature'] > 0,
      'knots/x': not (np.diff(x) > 0).all(),
      'knots/y': not ((np.diff(y) >= 0).all() and (y >= 0).all() and (y <= 1).all())}
  expected = {
      'scale': 'positive numbers', 'temperature': 'a positive number', 'knots/x': 'increasing numbers',
      'knots/y': 'non-decreasing probabilities'}
  for name, is_wrong in problems.items():
    if is_wrong:
      raise errors.CheckpointError(what=f'{name} of the classifier', where=where, expected=expected[name])


def _numbers(model):
  """What the description beside a model's file says of its vocabulary and width; {} where it says nothing."""
  try:
    description = json.loads(pathlib.Path(model).with_suffix('.json').read_text())
    config = description.get('config') or {}
    return {name: config[name] for name in ('vocab_size', 'embed_dim') if name in config} | {
        name: description[name] for name in ('tokenizer_sha256',) if name in description}
  except (OSError, ValueError, AttributeError, TypeError, RecursionError):
    return {}  # The bytes decide.
